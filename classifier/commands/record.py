"""Put the workspace's outputs into MLflow when no run has them: after `dvc pull`, or restored from DVC's run cache."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def record(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Put the workspace's outputs into MLflow if no run has them.

    They came with `dvc pull` into a fresh clone, or were restored from DVC's run cache.

    Params and code are those that dvc.lock names, whatever params.yaml says today. Twice gives one run. Outputs other
    than those of dvc.lock are refused.

    Example: classifier record
    """
    import classifier.runs.restoring as restoring  # mlflow takes seconds, which --help need not wait for
    from classifier.runs.registry import reported

    with reported():
        found = restoring.record()
    if as_json:
        print(json.dumps({"run": found.run.info.run_id, "new": found.new, "source": found.source}, indent=2))
    elif found.new:
        print(f"recorded: run {found.run.info.run_id}, of {found.source}")
    else:
        print(f"nothing to do: run {found.run.info.run_id} has these outputs")
