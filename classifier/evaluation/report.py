"""Writes `reports/evaluate/` and defines its file formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

import classifier.evaluation.figures as figures
import classifier.evaluation.metrics as evaluation
from classifier.evaluation.metrics import Predictions
from classifier.params import EvaluateParams
from classifier.project.files import replacing, write_atomic, write_json
from classifier.training.summary import spread


def write_evaluation(
    folder: Path,
    images: np.ndarray,
    predictions: Predictions,
    seeds: Mapping[int, Predictions],
    history: pd.DataFrame,
    params: EvaluateParams,
) -> tuple[dict[str, float | int], dict[int, dict[str, float | int]]]:
    """Write the files below and return the metrics, then the metrics of each seed. Equal input gives equal bytes.

    - `metrics.json`: accuracy, accuracy_low, accuracy_high (Wilson interval at confidence), confidence, error_rate,
      loss (nats), macro_f1, expected_calibration_error, n; with several seeds also accuracy_mean, accuracy_std and the
      mean's 95% interval accuracy_mean_low, accuracy_mean_high
    - `per_class.csv`: class, name, precision, recall, f1, support, predicted; one row per class
    - `confusion.csv`: actual, predicted, count; one row per pair of classes
    - `calibration.csv`: low, high, count, confidence, accuracy; one row per bin, the last two empty in an empty bin
    - `predictions.parquet`: index, label, predicted (int64), p_0 .. p_<K-1> (float32); one row per image
    - `misclassified.png` (the most confident mistakes), `confusion.png`, `calibration.png`
    - `curves.png`: the training, from `history` (`reports/train/history.csv`)
    - `replicas.csv`, with several seeds only: seed and the metrics of metrics.json; one row per seed

    images: `(N, C, 32, 32) uint8` in 0..255, C 1 or 3, in the order of `predictions`. seeds: the predictions of each
    seed's model, empty when a single model was trained.
    """
    metrics = evaluation.evaluate(predictions, params.confidence, params.calibration_bins)
    metrics["confidence"] = params.confidence
    of_seeds = {
        seed: evaluation.evaluate(each, params.confidence, params.calibration_bins) for seed, each in seeds.items()
    }
    if of_seeds:
        names = {
            "mean": "accuracy_mean",
            "std": "accuracy_std",
            "low": "accuracy_mean_low",
            "high": "accuracy_mean_high",
        }
        of_all = spread([values["accuracy"] for values in of_seeds.values()], highest=1)
        metrics |= {names[name]: value for name, value in of_all.items()}
    counts = evaluation.confusion_counts(predictions)
    bins = evaluation.calibration(predictions, params.calibration_bins)
    with replacing(folder) as new:
        write_json(new / "metrics.json", metrics)
        _write_csv(new / "per_class.csv", evaluation.per_class(predictions))
        _write_csv(new / "confusion.csv", evaluation.confusion(predictions))
        _write_csv(new / "calibration.csv", bins)
        table = evaluation.prediction_table(predictions)
        write_atomic(new / "predictions.parquet", table.to_parquet(index=False, engine="pyarrow"))
        write_atomic(new / "misclassified.png", figures.misclassified(images, predictions, params.mistakes))
        write_atomic(new / "confusion.png", figures.confusion(counts, predictions.class_names))
        write_atomic(new / "calibration.png", figures.calibration(bins))
        write_atomic(new / "curves.png", figures.curves(history))
        if of_seeds:
            rows = [{"seed": seed} | values for seed, values in of_seeds.items()]
            _write_csv(new / "replicas.csv", pd.DataFrame(rows))
    return metrics, of_seeds


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write UTF-8 with line feeds, floats at full precision and NaN as an empty field."""
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
