"""Upload the recorded data that stages could not upload to MLflow while they ran. The next stage does this, too."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def sync(
    moved_from: Annotated[
        str, typer.Option("--from", help="also upload data that was recorded for the store at this address")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Upload recorded data that is not yet in MLflow.

    Data is kept on disk when MLflow cannot be reached while a stage runs. Nothing is recorded twice.

    Exit status 1: some data could not be uploaded; a line says where it is and why.

    Example: classifier sync
    """
    from classifier.tracking.delivery import deliver_waiting  # slow: mlflow

    recorded, left = deliver_waiting(moved_from)
    if as_json:
        print(json.dumps({"recorded": recorded, "not_recorded": left}, indent=2))
        if left:
            sys.exit(1)
        return
    for line in recorded:
        print(f"recorded: {line}")
    if left:
        sys.exit("\n".join(f"not yet recorded in MLflow: {line}" for line in left))
    print("everything is recorded")
