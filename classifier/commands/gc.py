"""Permanently remove the runs that were deleted in MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove the runs instead of listing them")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Permanently remove the runs that were deleted in MLflow.

    Also removes their files and models. Without --yes, only lists the deleted runs of all experiments of the store. A
    run that was deleted in the UI keeps its files, so that it can be restored; `mlflow gc` alone does not remove its
    model. Nothing is removed if a deleted run belongs to a registered model version.

    Example: classifier gc --yes
    """
    from classifier.tracking.errors import reported
    from classifier.tracking.garbage import find_garbage, remove  # slow: mlflow

    with reported():
        garbage = find_garbage()
        if yes:
            remove(garbage)
    if as_json:
        print(json.dumps({"removed": yes, **asdict(garbage)}, indent=2))
        return
    for run, experiment in garbage.runs.items():
        print(f"run {run} of the experiment {experiment!r}")
    for name in garbage.experiments:
        print(f"the experiment {name!r}")
    counts = f"{len(garbage.runs)} runs, {len(garbage.models)} models, {len(garbage.experiments)} experiments"
    print(f"permanently removed: {counts}" if yes else f"classifier gc --yes permanently removes {counts}")
