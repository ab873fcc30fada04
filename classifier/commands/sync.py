"""Record in MLflow what stages could not record while they ran, as the next stage does too."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def sync(
    moved_from: Annotated[
        str, typer.Option("--from", help="also record what was meant for the store at this address")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Record in MLflow what could not be recorded while a stage ran.

    Nothing is recorded twice.

    Exit status 1: something could not be recorded; a line says where it is and why.

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
