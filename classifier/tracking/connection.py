"""The connection to MLflow's store: its settings, its creation, and the experiment of the project's runs."""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from classifier.project.lineage import project_root
from classifier.recording.store import DATABASE, artifacts_of, database_of, experiment_name, store_uri
from classifier.recording.tags import tag_queries
from classifier.tracking.errors import ExperimentError, unusable
from classifier.tracking.internals import connect, is_database, note_home, relocate

REQUEST_TIMEOUT_S = 10  # unless MLFLOW_HTTP_REQUEST_TIMEOUT is set; MLflow's default is 120 s, 8 times


def open_store(name: str | None = None) -> str:
    """Create the store and the experiment if needed, and return the experiment's id.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME override the default, `mlflow.db` in the project's root. Raises
    StoreError if the store cannot be used, and ExperimentError if the experiment cannot be used.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the next upload is the retry
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # the pipeline's models are not pickles
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of a server, at the end of a run
    uri = store_uri()
    mlflow.set_tracking_uri(uri)  # also sets MLFLOW_TRACKING_URI
    name = name or experiment_name()
    try:
        if database := database_of(uri):
            database.parent.mkdir(parents=True, exist_ok=True)
            # Processes that create a database at the same time crash in its migrations, so they take turns.
            with FileLock(f"{database}.lock"):
                relocate(database)
                connect(uri)
                experiment = _experiment(name, artifacts_of(database))
                note_home(database)
                return experiment
        if is_database(uri):
            with FileLock(project_root() / f"{DATABASE}.lock"):
                connect(uri)
        return _experiment(name, None)  # a server chooses the location of artifacts
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError) as error:
        raise unusable(error) from None


def runs_with_tag(experiment: str, tag: str, value: str) -> list[Run]:
    """The experiment's runs with this tag, under its current or an earlier name, newest first."""
    order = ["attributes.start_time DESC"]
    found = [
        run
        for query in tag_queries(tag, value)
        for run in mlflow.search_runs([experiment], query, order_by=order, output_format="list")
    ]
    return sorted(found, key=lambda run: run.info.start_time, reverse=True)


def _experiment(name: str, artifacts: str | None) -> str:
    """The id of an experiment, created if it does not exist."""
    if experiment := mlflow.get_experiment_by_name(name):
        return _usable(experiment)
    if artifacts is None and is_database(store_uri()):  # MLflow would store a folder of this machine
        raise ExperimentError(
            f"MLflow's store has no experiment {name!r}, and a database does not know where artifacts go: create it "
            "with a place that all its users reach, as in "
            f"mlflow experiments create -n {shlex.quote(name)} -l s3://bucket/path"
        )
    # Without the kind, the UI opens pages for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException:
        if experiment := mlflow.get_experiment_by_name(name):  # created by another machine in the meantime
            return _usable(experiment)
        raise


def _usable(experiment: Experiment) -> str:
    """The experiment's id. Raises ExperimentError if it was deleted."""
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise ExperimentError(
            f"the experiment {experiment.name!r} was deleted in MLflow: "
            f"mlflow experiments restore -x {experiment.experiment_id}"
        )
    return str(experiment.experiment_id)
