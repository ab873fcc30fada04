"""Permanently remove the runs that were deleted in MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def gc(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Permanently remove the runs that were deleted in MLflow, with their files and models.

    A run that was deleted in the UI keeps its files, so that it can be restored; `mlflow gc` alone does not remove its
    model. Nothing is removed if a deleted run belongs to a registered model version.

    Example: classifier gc
    """
    from classifier.tracking.errors import reported
    from classifier.tracking.garbage import collect  # slow: mlflow

    with reported():
        collected = collect()
    if as_json:
        print(json.dumps(asdict(collected), indent=2))
    else:
        print(f"permanently removed: {len(collected.runs)} runs, {len(collected.models)} models")
