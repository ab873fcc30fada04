"""Record the workspace's outputs in MLflow if no run has them: after `dvc pull`, or from DVC's run cache."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def record(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Record the workspace's outputs in MLflow if no run has them.

    Use it after `dvc pull` in a fresh clone, or when DVC restored outputs from its run cache.

    Params and code are taken from dvc.lock, not from the current params.yaml. Repeating the command does not create
    another run. Outputs that differ from dvc.lock are refused.

    Example: classifier record
    """
    import classifier.runs.restoring as restoring  # slow: mlflow
    from classifier.tracking.errors import reported

    with reported():
        found = restoring.record()
    if as_json:
        print(json.dumps({"run": found.run.info.run_id, "new": found.new, "source": found.source}, indent=2))
    elif found.new:
        print(f"recorded: run {found.run.info.run_id}, of {found.source}")
    else:
        print(f"nothing to do: run {found.run.info.run_id} has these outputs")
