"""Deliver to MLflow what had to wait; the next stage does so too.

Example: lenet sync
"""

from __future__ import annotations

import sys

from classifier.tracking import deliver_waiting
from commands.application import run_command


def sync() -> None:
    """Deliver every run, or part of one, that MLflow's store did not take while its stage ran; each arrives once.

    Exit status 1: something still waits, and a line says where and why.

    Example: lenet sync
    """
    delivered, left = deliver_waiting()
    for line in delivered:
        print(f"delivered: {line}")
    if left:
        sys.exit("\n".join(f"waits: {line}" for line in left))
    print("nothing waits")


if __name__ == "__main__":
    run_command(sync)
