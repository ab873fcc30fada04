"""The evaluation as files: the formats of `reports/evaluate/`."""

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
    replicas: Mapping[int, Predictions],
    history: pd.DataFrame,
    params: EvaluateParams,
) -> tuple[dict[str, float | int], dict[int, dict[str, float | int]]]:
    """Write these files, the same bytes for the same input, and return the metrics and those of each replica.

    - `metrics.json`: accuracy, accuracy_low, accuracy_high (Wilson interval at confidence), confidence, error_rate,
      loss (nats), macro_f1, expected_calibration_error, n; with replicas accuracy_mean, accuracy_std and the mean's
      95% interval accuracy_mean_low, accuracy_mean_high
    - `per_class.csv`: class, name, precision, recall, f1, support, predicted; a row per class
    - `confusion.csv`: actual, predicted, count; a row per pair of classes
    - `calibration.csv`: low, high, count, confidence, accuracy; a row per bin, the last two empty in an empty bin
    - `predictions.parquet`: index, label, predicted (int64), p_0 .. p_<K-1> (float32); a row per image
    - `misclassified.png`: the most confident mistakes; `confusion.png`; `calibration.png`
    - `curves.png`: the training run, from `history` (`reports/train/history.csv`)
    - `replicas.csv`, only with replicas: seed and the metrics of metrics.json; a row per replica

    images: `(N, C, 32, 32) uint8` in 0..255, C 1 or 3, in the order of `predictions`.
    """
    metrics = evaluation.evaluate(predictions, params.confidence, params.calibration_bins)
    metrics["confidence"] = params.confidence
    of_replicas = {
        seed: evaluation.evaluate(each, params.confidence, params.calibration_bins) for seed, each in replicas.items()
    }
    if of_replicas:
        names = {
            "mean": "accuracy_mean",
            "std": "accuracy_std",
            "low": "accuracy_mean_low",
            "high": "accuracy_mean_high",
        }
        of_all = spread([values["accuracy"] for values in of_replicas.values()], highest=1)
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
        if of_replicas:
            rows = [{"seed": seed} | values for seed, values in of_replicas.items()]
            _write_csv(new / "replicas.csv", pd.DataFrame(rows))
    return metrics, of_replicas


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    """UTF-8, line feeds, floats with all their digits, NaN as an empty field."""
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
