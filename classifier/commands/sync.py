"""Deliver to MLflow what had to wait; the next stage does so too."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def sync(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Deliver to MLflow what it did not take while a stage ran.

    Each run, and each part of one, arrives once.

    Exit status 1: something still waits, and a line says where and why.

    Example: classifier sync
    """
    from classifier.tracking.delivery import deliver_waiting  # mlflow takes seconds, which --help need not wait for

    delivered, left = deliver_waiting()
    if as_json:
        print(json.dumps({"delivered": delivered, "waits": left}, indent=2))
        sys.exit(1 if left else 0)
    for line in delivered:
        print(f"delivered: {line}")
    if left:
        sys.exit("\n".join(f"waits: {line}" for line in left))
    print("nothing waits")
