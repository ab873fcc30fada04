"""Permanently removes runs that were deleted in MLflow, with their files and their models, which `mlflow gc` keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import mlflow
from mlflow.entities import ViewType

from classifier.errors import UserError
from classifier.recording.store import shown_uri, store_uri
from classifier.tracking.delivery import open_store
from classifier.tracking.internals import is_database


@dataclass(frozen=True)
class Collected:
    """Ids of the runs and models that were removed."""

    runs: list[str]
    models: list[str]


def collect() -> Collected:
    """Remove all deleted runs of the store, in all experiments, and all deleted experiments.

    Raises UserError and removes nothing if the store is a server, or if a registered version belongs to a deleted run.
    """
    uri = store_uri()
    if not is_database(uri):
        raise UserError(
            f"the runs are on a server, {shown_uri()}: where its database is, run classifier gc with "
            "MLFLOW_TRACKING_URI set to the address of that database"
        )
    open_store()
    client = mlflow.MlflowClient()
    experiments = [found.experiment_id for found in mlflow.search_experiments(view_type=ViewType.ALL)]
    runs = [
        run.info.run_id
        for run in mlflow.search_runs(experiments, run_view_type=ViewType.DELETED_ONLY, output_format="list")
    ]
    models = []
    for run in runs:
        if versions := client.search_model_versions(f"run_id = '{run}'"):
            raise UserError(
                f"run {run} was deleted, but is version {versions[0].version} of {versions[0].name}: nothing is "
                f"removed; mlflow runs restore --run-id {run}, or delete that version"
            )
        found = client.search_logged_models(experiments, filter_string=f"source_run_id = '{run}'")
        models += [model.model_id for model in found]
    for model in models:
        client.delete_logged_model(model)
    _mlflow_gc(uri)
    return Collected(runs, models)


def _mlflow_gc(uri: str) -> None:
    """Run `mlflow gc`. Raises OSError with the last line of its output if it fails."""
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603, arguments of our own
    if done.returncode:
        raise OSError(f"mlflow gc failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
