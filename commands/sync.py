"""Deliver to MLflow what had to wait; the next stage does so too.

Example: lenet sync
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException

from classifier.journal import waiting_journals
from classifier.tracking import deliver_waiting
from commands.application import run_command


def sync() -> None:
    """Deliver every run, or part of one, that MLflow's store did not take while its stage ran; each arrives once.

    Example: lenet sync
    """
    try:
        for line in deliver_waiting():
            print(f"delivered: {line}")
    except MlflowException as error:
        raise OSError(f"{str(error).splitlines()[0]}; what is left still waits: lenet sync") from None
    left = len(waiting_journals())
    print(f"{left} of other stores, or of stages that still run: left alone" if left else "nothing waits")


if __name__ == "__main__":
    run_command(sync)
