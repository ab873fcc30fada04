"""Repair what a killed DVC leaves behind and does not repair itself. `make repro` does this first.

Example: classifier repair
"""

from __future__ import annotations

from classifier.repository.repair import repair as repair_project


def repair() -> None:
    """Repair what a killed DVC left behind.

    Restores a truncated dvc.lock from the last commit and removes stale locks. Prints nothing if all is well.

    Example: classifier repair
    """
    for line in repair_project():
        print(line)
