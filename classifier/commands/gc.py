"""Remove for good the runs that were deleted in MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def gc(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Remove for good the runs that were deleted in MLflow, with their files and their models.

    A run that was deleted in the UI can be restored, and so keeps its files until then; `mlflow gc` alone leaves its
    model. When a registered version is of a deleted run, nothing is removed.

    Example: classifier gc
    """
    from classifier.runs.registry import reported
    from classifier.tracking.garbage import collect  # mlflow takes seconds, which --help need not wait for

    with reported():
        collected = collect()
    if as_json:
        print(json.dumps(asdict(collected), indent=2))
    else:
        print(f"removed for good: {len(collected.runs)} runs, {len(collected.models)} models")
