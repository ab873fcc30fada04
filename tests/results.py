"""Evaluated runs without training, written to a real store with MLflow's client."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from classifier.recording.store import sqlite_uri
from classifier.tracking.connection import open_store

LABELS = np.arange(40) % 4
NAMES = ["zero", "one", "two", "three"]
PARAMS = {"train.epochs": "2", "train.learning_rate": "0.05", "train.log_every": "10", "evaluate.batch_size": "100"}
TEST = "a" * 64


@cache
def empty_store() -> bytes:
    """MLflow's empty database, created once per process because its migrations take 1.6 s."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.MlflowClient(sqlite_uri(Path(folder) / "mlflow.db")).search_experiments()
        return (Path(folder) / "mlflow.db").read_bytes()


def wrong_on(images: Sequence[int]) -> np.ndarray:
    """Predictions `(40,)` that are right except for these images, which get the next class."""
    predicted = LABELS.copy()
    predicted[list(images)] = (predicted[list(images)] + 1) % 4
    return predicted


def write_evaluation(folder: Path, predicted: np.ndarray) -> None:
    probabilities = np.full((len(LABELS), 4), 0.1, np.float32)
    probabilities[np.arange(len(LABELS)), predicted] = 0.7
    table = pd.DataFrame({"index": np.arange(len(LABELS)), "label": LABELS, "predicted": predicted})
    table = table.join(pd.DataFrame(probabilities, columns=[f"p_{number}" for number in range(4)]))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "predictions.parquet", index=False)
    pd.DataFrame({"class": range(4), "name": NAMES}).to_csv(folder / "per_class.csv", index=False)


def record(
    seed: int = 0,
    wrong: Sequence[int] = (),
    *,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    accuracy: float | None = None,
    metrics: Mapping[str, float] | None = None,
    predictions: bool = True,
    patch: bytes = b"",
) -> str:
    """Record an evaluated run that is wrong on these images and return its id. Start times are one second apart."""
    experiment, client = open_store(), mlflow.MlflowClient()
    start = 1_800_000_000_000 + 1000 * len(client.search_runs([experiment], max_results=1000))
    given = {
        "git.commit": "c" * 40,
        "git.dirty": str(bool(patch)).lower(),
        "dvc.data": "d" * 32 + ".dir",
        "mlflow.classifier.test_sha256": TEST,
        "mlflow.classifier.evaluated": "true",
        **(tags or {}),
    }
    run = client.create_run(experiment, start, {name: value for name, value in given.items() if value}).info.run_id
    for name, value in {**PARAMS, "train.seed": seed, **(params or {})}.items():
        client.log_param(run, name, value)
    client.log_metric(run, "test/accuracy", 1 - len(wrong) / 40 if accuracy is None else accuracy)
    for name, value in (metrics or {}).items():
        client.log_metric(run, name, value)
    for step in (1, 2):
        client.log_metric(run, "train/running_loss", 1 / step, start + 500 * step, step)
    client.log_metric(run, "train/loss", 0.5, start + 2500, 2)
    client.log_metric(run, "train/seconds", 2.5, start + 2500, 2)
    if predictions:
        write_evaluation(Path("made") / run, wrong_on(wrong))
        client.log_artifacts(run, f"made/{run}", "evaluate")
    client.log_text(run, '{"parameters": 61706}', "train/metrics.json")
    if patch:
        client.log_text(run, patch.decode(), "code/uncommitted.diff")
    client.set_terminated(run, "FINISHED", start + 9000)
    return run
