"""Mend what a DVC that was killed left behind and does not mend itself; `make repro` does so first.

Example: lenet mend
"""

from __future__ import annotations

from classifier.mending import mend as mend_project
from commands.application import run_command


def mend() -> None:
    """Take a dvc.lock that was cut off back from the last commit, and remove stale locks; silent when all is well.

    Example: lenet mend
    """
    for line in mend_project():
        print(line)


if __name__ == "__main__":
    run_command(mend)
