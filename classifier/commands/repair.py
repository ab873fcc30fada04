"""Mend what a DVC that was killed left behind and does not mend itself; `make repro` does so first.

Example: classifier repair
"""

from __future__ import annotations

from classifier.repository.repair import mend as mend_project


def repair() -> None:
    """Repair what a killed DVC left behind.

    A truncated dvc.lock is restored from the last commit, stale locks are removed. Prints nothing when all is well.

    Example: classifier repair
    """
    for line in mend_project():
        print(line)
