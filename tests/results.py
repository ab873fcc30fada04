"""Evaluated runs without training, written to a real store with MLflow's client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param

from classifier.tracking.connection import open_store

LABELS = np.arange(40) % 4
NAMES = ["zero", "one", "two", "three"]
PARAMS = {"train.epochs": "2", "train.learning_rate": "0.05", "train.log_every": "10", "evaluate.batch_size": "100"}
TEST = "a" * 64


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
    points = [Metric("train/running_loss", 1 / step, start + 500 * step, step) for step in (1, 2)]
    points += [Metric(name, value, start + 2500, 2) for name, value in (("train/loss", 0.5), ("train/seconds", 2.5))]
    tested = {"test/accuracy": 1 - len(wrong) / 40 if accuracy is None else accuracy, **(metrics or {})}
    points += [Metric(name, value, start + 2500, 0) for name, value in tested.items()]
    used = {**PARAMS, "train.seed": seed, **(params or {})}
    client.log_batch(run, points, [Param(name, str(value)) for name, value in used.items()])
    if predictions:
        write_evaluation(Path("made") / run, wrong_on(wrong))
        client.log_artifacts(run, f"made/{run}", "evaluate")
    client.log_text(run, '{"parameters": 61706}', "train/summary.json")
    if patch:
        client.log_text(run, patch.decode(), "code/uncommitted.diff")
    client.set_terminated(run, "FINISHED", start + 9000)
    return run


def record_seeds() -> tuple[str, str, str]:
    """Record a run of seeds 4 and 5, wrong on one and on two images; returns its id and those of its nested runs."""
    parent = record(4, [1], params={"train.seeds": "2"}, tags={"mlflow.classifier.chosen_seed": "5"})
    of_parent = ("mlflow.classifier.evaluated", "git.commit", "dvc.data", "mlflow.classifier.test_sha256")
    tags = {**dict.fromkeys(of_parent, ""), "mlflow.parentRunId": parent}
    nested = [
        record(seed, range(seed - 3), tags={**tags, "mlflow.classifier.seed": str(seed)}, predictions=False)
        for seed in (4, 5)
    ]
    return parent, *nested
