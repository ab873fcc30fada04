"""Repair what a killed DVC left behind and does not repair itself; `make repro` does so first.

Example: classifier repair
"""

from __future__ import annotations

from classifier.repository.repair import repair as repair_project


def repair() -> None:
    """Repair what a killed DVC left behind.

    A truncated dvc.lock is restored from the last commit, stale locks are removed. Prints nothing when all is well.

    Example: classifier repair
    """
    for line in repair_project():
        print(line)
