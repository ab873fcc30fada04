"""Runs that could be promoted: a small model, the predictions that a test wants of it, in a git repository."""

import subprocess
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import mlflow
import numpy as np

from classifier.evaluation.metrics import Predictions, evaluate
from classifier.evaluation.tables import prediction_table
from classifier.recording.run import restore_training
from classifier.repository.lockfile import hash_of
from classifier.tracking.connection import open_store
from tests.recorded import Workspace, own_store, recorded
from tests.samples import ROOT, write_digits

IMAGES = 57  # of the test split
LIMITS = {"min_accuracy_low": 0.7, "max_calibration_error": 0.1, "max_latency_ms": 1000}  # 51 right: 0.791 and more


def git(*arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def begin_project(top="."):
    """The current folder becomes a project with limits that small models can keep; `top` becomes its repository."""
    text = (ROOT / "params.yaml").read_text()
    for line in text.splitlines():
        key = line.strip().partition(":")[0]
        if key in LIMITS:
            text = text.replace(line, f"  {key}: {LIMITS[key]}")
    Path("params.yaml").write_text(text)
    Path("dvc.yaml").write_text("artifacts:\n  classifier:\n    path: models/classifier\n")
    Path(".gitignore").write_text("/.pipeline/\n/data/\n/models/\n/reports/\n/mlflow.db*\n/mlartifacts/\n")
    git("init", "-q", str(top))
    git("add", "-A")
    git("commit", "-qm", "begin")


@contextmanager
def unregistered(root):
    """In the project `root`; models that are registered meanwhile are deleted."""
    with own_store(root):
        open_store()
        yield
        client = mlflow.MlflowClient()
        for model in client.search_registered_models():
            client.delete_registered_model(model.name)


def record_candidates(wrong):
    """Name -> run of a candidate that is wrong on these images, each of another seed."""
    return {name: Candidate(seed, images).record() for seed, (name, images) in enumerate(wrong.items())}


class Candidate(Workspace):
    """Weights of `seed`, and predictions that are right but for the images `wrong` of the test split."""

    def __init__(self, seed, wrong=(), images=IMAGES):
        super().__init__(seed)
        if images != IMAGES:
            self.data_meta = write_digits(self.data, test=images)
        labels = np.arange(images) % 10
        predicted = labels.copy()
        predicted[list(wrong)] = (labels[list(wrong)] + 1) % 10
        log_probabilities = np.full((images, 10), np.log(0.001))
        log_probabilities[np.arange(images), predicted] = np.log(0.991)
        predictions = Predictions(labels, log_probabilities, self.meta.class_names)
        prediction_table(predictions).to_parquet(self.reports / "predictions.parquet")
        self.metrics = evaluate(predictions, 0.95, 15)
        lock = f"stages:\n  train:\n    outs:\n    - path: models/classifier\n      md5: {hash_of(self.model)}\n"
        Path("dvc.lock").write_text(lock)

    def record(self):
        """The run's id. It is made by the evaluation alone, as after `dvc pull`, which takes one delivery."""
        with recorded("evaluate", self.params) as record:
            record.begin(uuid4().hex, {}, self.meta.weights_sha256)
            restore_training(record, self.data, self.data_meta, self.model, self.meta, self.training)
            record.log_evaluation(self.metrics, {}, self.reports, self.model)
        return record.id
