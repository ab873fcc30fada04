"""Writes `reports/evaluate/` and defines its file formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from classifier.data.dataset import DatasetMeta, Split
from classifier.evaluation import figures, gallery, metrics, page, robustness, tables
from classifier.evaluation.metrics import Predictions
from classifier.evaluation.temperature import fit_temperature, scaled
from classifier.networks.model_dir import ModelMeta
from classifier.params import EvaluateParams
from classifier.project.files import replacing, write_atomic, write_json
from classifier.training.summary import summarize


@dataclass(frozen=True)
class Evaluation:
    """Everything that the stage has read and computed."""

    data: DatasetMeta
    model: ModelMeta
    dataset: str  # its display name
    costs: Mapping[str, int]  # of the network (`classifier.training.report.COSTS`)
    layers: Sequence[Mapping[str, str]]  # rows of reports/train/layers.csv
    histories: Mapping[int, pd.DataFrame]  # by seed (`reports/train/history.csv`), with that of `model.seed`
    test: Split
    predictions: Predictions  # of the model for the test split
    validation: Predictions | None = None  # for the validation split; None if it is empty
    # For each of `robustness.conditions` and each test image, whether the prediction is right: `(conditions, N) bool`.
    right: np.ndarray = field(default_factory=lambda: np.zeros((0, 1), dtype=bool))
    seeds: Mapping[int, Predictions] = field(default_factory=dict)  # of each seed's model, if several were trained
    paths: Sequence[str] | None = None  # of the test images; None for a data set that is not a folder of images


def write_evaluation(
    folder: Path, evaluation: Evaluation, params: EvaluateParams
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Write the files below and return the metrics, then the metrics of each seed. Equal input gives equal bytes.

    - `metrics.json`, under MLflow's names, which begin with `test/`: those of `metrics.evaluate`; those of
      `robustness.metrics`; with several seeds also accuracy_mean, accuracy_std and the mean's 95% interval
      accuracy_mean_low, accuracy_mean_high
    - `summary.json`: what the metrics belong to: dataset, classes, images per split, confidence (of all intervals),
      network, pretrained, the network's costs, seed, the SHA-256 of the weights and of the data's splits; temperature
      (`classifier.evaluation.temperature`) and scaled_calibration_error, at that temperature, null without a
      validation split
    - `report.html`: everything on one page, which needs no other file (`classifier.evaluation.page`)
    - `per_class.csv`, `confusion.csv`, `confusions.csv`, `misclassified.csv`, `predictions.parquet`:
      see `classifier.evaluation.tables`
    - `calibration.csv`: low, high, count, confidence, accuracy; and scaled_count, scaled_confidence, scaled_accuracy at
      the temperature. One row per bin; fields are empty in an empty bin, and the last three without a temperature
    - `robustness.csv`: corruption, strength, images, accuracy, accuracy_low, accuracy_high; a row for each strength
    - `misclassified.png` (those with the highest probability), `robustness.png`, `confusion.png`, `calibration.png`,
      and `curves.png` (the training)
    - `replicas.csv`, with several seeds only: seed and its metrics; one row per seed
    """
    predictions, of_seeds = evaluation.predictions, _of_seeds(evaluation, params)
    found = metrics.evaluate(predictions, params.confidence, params.calibration_bins)
    bins, scaled_bins = metrics.calibration(predictions, params.calibration_bins), None
    temperature, error = None, None
    if evaluation.validation is not None:
        temperature = fit_temperature(evaluation.validation)
        scaled_bins = metrics.calibration(scaled(predictions, temperature), params.calibration_bins)
        error = metrics.expected_calibration_error(scaled_bins)
    corrupted = robustness.table(params.corruptions, evaluation.right, params.confidence)
    found |= robustness.metrics(corrupted) | _over_seeds(of_seeds)
    wrong = tables.misclassified(predictions, params.misclassified, evaluation.paths)
    images = evaluation.test.take(wrong["index"].to_numpy())
    pictures = {
        "curves.png": figures.curves(evaluation.histories, evaluation.model.seed),
        "confusion.png": figures.confusion(predictions),
        "calibration.png": figures.calibration(bins, scaled_bins, temperature),
        "misclassified.png": gallery.misclassified(images, wrong, int((~predictions.right).sum()), len(predictions)),
        "robustness.png": gallery.robustness(corrupted, found["accuracy"], evaluation.test.take(np.array([0]))[0]),
    }
    written = {
        "per_class.csv": tables.per_class(predictions, params.confidence),
        "confusion.csv": tables.confusion(predictions),
        "confusions.csv": tables.confusions(predictions),
        "calibration.csv": _side_by_side(bins, scaled_bins),
        "misclassified.csv": wrong,
        "robustness.csv": corrupted,
    }
    if of_seeds:
        written["replicas.csv"] = pd.DataFrame([{"seed": seed} | values for seed, values in of_seeds.items()])
    summary = _summary(evaluation, params) | {"temperature": temperature, "scaled_calibration_error": error}
    html = page.page(summary, found, written, pictures, images, evaluation)
    with replacing(folder) as new:
        write_json(new / "metrics.json", {f"test/{name}": value for name, value in found.items()})
        write_json(new / "summary.json", summary)
        write_atomic(new / "report.html", html.encode())
        for name, table in written.items():
            _write_csv(new / name, table)
        table = tables.prediction_table(predictions, evaluation.paths)
        write_atomic(new / "predictions.parquet", _parquet(table))
        for name, content in pictures.items():
            write_atomic(new / name, content)
    return found, of_seeds


def _of_seeds(evaluation: Evaluation, params: EvaluateParams) -> dict[int, dict[str, float]]:
    return {
        seed: metrics.evaluate(each, params.confidence, params.calibration_bins)
        for seed, each in evaluation.seeds.items()
    }


def _over_seeds(of_seeds: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    if not of_seeds:
        return {}
    names = {"mean": "accuracy_mean", "std": "accuracy_std", "low": "accuracy_mean_low", "high": "accuracy_mean_high"}
    over_all = summarize([values["accuracy"] for values in of_seeds.values()], highest=1)
    return {names[name]: value for name, value in over_all.items()}


def _side_by_side(bins: pd.DataFrame, scaled_bins: pd.DataFrame | None) -> pd.DataFrame:
    other = bins * np.nan if scaled_bins is None else scaled_bins
    return bins.join(other[["count", "confidence", "accuracy"]].add_prefix("scaled_"))


def _summary(evaluation: Evaluation, params: EvaluateParams) -> dict[str, object]:
    data, model = evaluation.data, evaluation.model
    return {
        "dataset": evaluation.dataset,
        "classes": len(data.class_names),
        "images": {split: sum(counts) for split, counts in data.counts.items()},
        "confidence": params.confidence,
        "network": model.architecture,
        "pretrained": model.pretrained,
        **evaluation.costs,
        "seed": model.seed,
        "weights_sha256": model.weights_sha256,
        "data_sha256": data.sha256,
    }


def _parquet(table: pd.DataFrame) -> bytes:
    """Without dictionary encoding, which makes a file of many different numbers larger by half."""
    return table.to_parquet(index=False, engine="pyarrow", use_dictionary=False, compression="zstd")


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write UTF-8 with line feeds, floats at full precision and missing values as empty fields."""
    write_atomic(path, table.to_csv(index=False, lineterminator="\n").encode())
