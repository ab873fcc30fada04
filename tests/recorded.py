"""Runs recorded like those of the stages, with small outputs and without training, in a real SQLite store."""

import json
import os
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from uuid import uuid4

import mlflow
import pytest

from classifier.networks.model_dir import build, write_model
from classifier.recording import run as recording
from classifier.recording.store import sqlite_uri
from classifier.tracking import delivery as tracking
from classifier.training.history import HistoryRow
from classifier.training.report import write_training
from tests.samples import COSTS, file_params, write_digits

ROWS = [HistoryRow(10, 1, 320, 0.05, 2.1), HistoryRow(12, 1, 340, 0.04, 1.9, 2.0, 1.8, 0.5)]
FOREIGN = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "PIPELINE_ROOT")
METRICS = {"accuracy": 0.9, "n": 57}


@cache
def empty_store():
    """The bytes of MLflow's empty database, created once per process because its migrations take over a second."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.MlflowClient(sqlite_uri(Path(folder) / "mlflow.db")).search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def write_store(root):
    """Give the project `root` an empty store, unless it has one."""
    if not (root / "mlflow.db").exists():
        (root / "mlflow.db").write_bytes(empty_store())


@contextmanager
def own_store(root):
    """Make `root` the current folder and a project with its own store; resets MLflow's globals afterwards."""
    write_store(root)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        patch.setenv("DVC_ROOT", str(root))
        patch.chdir(root)
        yield
    forget_store()


def forget_store():
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@contextmanager
def written(stage, params):
    """A stage's record without its recorder (tests/recording/test_run.py tests it): the journal stays undelivered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "start_recorder", lambda journal: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        with recording.recording(stage, params) as record:
            yield record


@contextmanager
def recorded(stage, params):
    """Like `written`, but delivers the journal at the end."""
    try:
        with written(stage, params) as record:
            yield record
    finally:
        record.id = tracking.deliver(record.journal)


class Workspace:
    """Outputs as the stages write them, and the recording part of train and evaluate."""

    def __init__(self, seed=0):
        self.params = file_params()
        self.data, self.model, self.training, self.reports = (
            Path(name) for name in ("data/normalized", "models/classifier", "reports/train", "reports/evaluate")
        )
        self.data_meta = write_digits(self.data)
        self.meta = write_model(self.model, {seed: build(self.data_meta, seed)}, seed, self.data_meta)
        write_training(self.training, {seed: ROWS}, seed, COSTS)
        self.reports.mkdir(parents=True, exist_ok=True)
        (self.reports / "metrics.json").write_text(json.dumps(METRICS))

        self.histories, self.test_metrics = {seed: ROWS}, {}

    def has_history(self, rows):
        """Replace ROWS for every seed."""
        self.histories = dict.fromkeys(self.histories, rows)
        write_training(self.training, self.histories, self.meta.seed, COSTS)

    def train(self, key=None):
        with recorded("train", self.params) as record:
            record.begin(key or uuid4().hex, {"threads": "2"})
            record.log_data(self.data, self.data_meta)
            for seed, rows in self.histories.items():
                for row in rows:
                    record.log_row(seed, row)
            record.log.append("[1,    10] loss: 2.100")
            record.log_training(self.model, self.meta, self.training, self.histories)
        return record.id

    def evaluate(self, params=None, fail=False):
        with recorded("evaluate", params or self.params) as record:
            record.begin(uuid4().hex, {}, self.meta.weights_sha256)
            arguments = (self.data, self.data_meta, self.model, self.meta, self.training)
            recording.restore_training(record, *arguments)
            if fail:
                record.journal.append("metrics", seed=None, step=0, values={"test/accuracy": METRICS["accuracy"]})
                raise ZeroDivisionError
            record.log_evaluation(METRICS, self.test_metrics, self.reports, self.model)
        return record.id


class SeedsWorkspace(Workspace):
    """A workspace of two seeds."""

    def __init__(self):
        super().__init__()
        train = self.params.train.model_copy(update={"seeds": 2, "seed": 4})
        self.params = self.params.model_copy(update={"train": train})
        models = {4: build(self.data_meta, 4), 5: build(self.data_meta, 5)}
        self.meta = write_model(self.model, models, 5, self.data_meta)
        self.histories = {4: ROWS, 5: [replace(row, running_loss=1.0, validation_accuracy=0.7) for row in ROWS]}
        write_training(self.training, self.histories, 5, COSTS)
        self.test_metrics = {4: {"accuracy": 0.8}, 5: {"accuracy": 0.9}}


def get_run(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def all_runs():
    client = mlflow.MlflowClient()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def history(run_id, key):
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, key)]


def files(run_id, folder=None):
    found = mlflow.MlflowClient().list_artifacts(run_id, folder)
    return {name for file in found for name in (files(run_id, file.path) if file.is_dir else {file.path})}
