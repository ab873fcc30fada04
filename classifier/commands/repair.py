"""Repair files that a killed DVC left incomplete and cannot repair itself. `make repro` does this first.

Example: classifier repair
"""

from __future__ import annotations

from classifier.repository.repair import repair as repair_project


def repair() -> None:
    """Repair the files of a killed DVC.

    Restores a truncated dvc.lock from the last commit and removes stale locks. Prints nothing if there is nothing to
    repair.

    Example: classifier repair
    """
    for line in repair_project():
        print(line)
