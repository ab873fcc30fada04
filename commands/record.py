"""Put the workspace's outputs into MLflow when no run has them: after `dvc pull`, or restored from DVC's run cache."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from commands.application import run_command


def record(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Put the workspace's outputs into MLflow when no run has them: a fresh clone's after dvc pull, or restored ones.

    Params and code are those that dvc.lock names, whatever params.yaml says today. Twice gives one run. Outputs other
    than those of dvc.lock are refused.

    Example: lenet record
    """
    import classifier.restoring as restoring  # mlflow takes seconds, which --help need not wait for
    from classifier.registry import reported

    with reported():
        found = restoring.record()
    if as_json:
        print(json.dumps({"run": found.run.info.run_id, "new": found.new, "source": found.source}, indent=2))
    elif found.new:
        print(f"recorded: run {found.run.info.run_id}, of {found.source}")
    else:
        print(f"nothing to do: run {found.run.info.run_id} has these outputs")


if __name__ == "__main__":
    run_command(record)
