"""Permanently removes runs that were deleted in MLflow, with their files, and their models, which `mlflow gc` keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import mlflow
from mlflow.entities import LifecycleStage, ViewType

from classifier.errors import UserError
from classifier.recording.store import shown_uri, store_uri
from classifier.tracking.connection import open_store
from classifier.tracking.internals import is_database

GC = "import os, mlflow.cli; mlflow.cli.gc(['--backend-store-uri', os.environ['MLFLOW_TRACKING_URI']])"


@dataclass(frozen=True)
class Garbage:
    """The runs and experiments that were deleted in MLflow, in all experiments of the store."""

    runs: dict[str, str]  # id -> name of its experiment
    models: list[str]  # ids of the models of these runs
    experiments: list[str]  # names of the deleted experiments


def find_garbage() -> Garbage:
    """Find all deleted runs of the store, in all experiments, and all deleted experiments.

    Raises UserError if the store is a server, or if a registered version belongs to a deleted run.
    """
    uri = store_uri()
    if not is_database(uri):
        raise UserError(
            f"the runs are on a server, {shown_uri()}: run classifier gc on the machine of its database, with "
            "MLFLOW_TRACKING_URI set to the address of that database"
        )
    open_store()
    client = mlflow.MlflowClient()
    experiments = mlflow.search_experiments(view_type=ViewType.ALL)
    names = {experiment.experiment_id: experiment.name for experiment in experiments}
    deleted = mlflow.search_runs([*names], run_view_type=ViewType.DELETED_ONLY, output_format="list")
    runs = {run.info.run_id: names[run.info.experiment_id] for run in deleted}
    models = []
    for run in runs:
        if versions := client.search_model_versions(f"run_id = '{run}'"):
            raise UserError(
                f"run {run} was deleted, but is version {versions[0].version} of {versions[0].name}: nothing is "
                f"removed; mlflow runs restore --run-id {run}, or delete that version"
            )
        found = client.search_logged_models([*names], filter_string=f"source_run_id = '{run}'")
        models += [model.model_id for model in found]
    gone = [experiment.name for experiment in experiments if experiment.lifecycle_stage == LifecycleStage.DELETED]
    return Garbage(runs, models, gone)


def remove(garbage: Garbage) -> None:
    """Remove it permanently. Raises OSError with the last line of `mlflow gc` if that fails; it can be repeated.

    The address of the store is not passed as an argument: it may contain a password, and all users of the machine can
    see a process's arguments.
    """
    client = mlflow.MlflowClient()
    for model in garbage.models:
        client.delete_logged_model(model)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store_uri()}
    done = subprocess.run([sys.executable, "-c", GC], env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise OSError(f"mlflow gc failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
