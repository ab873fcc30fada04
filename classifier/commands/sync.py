"""Record in MLflow what had to wait; the next stage does so too."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def sync(
    moved_from: Annotated[
        str, typer.Option("--from", help="record what is for the store at this address in the store in use too")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Record in MLflow what it did not take while a stage ran.

    Each run, and each part of one, arrives once.

    Exit status 1: something is not yet recorded, and a line says where it is and why.

    Example: classifier sync
    """
    from classifier.tracking.delivery import deliver_waiting  # mlflow takes seconds, which --help need not wait for

    delivered, left = deliver_waiting(moved_from)
    if as_json:
        print(json.dumps({"delivered": delivered, "waits": left}, indent=2))
        sys.exit(1 if left else 0)
    for line in delivered:
        print(f"recorded: {line}")
    if left:
        sys.exit("\n".join(f"not yet recorded in MLflow: {line}" for line in left))
    print("everything is recorded")
