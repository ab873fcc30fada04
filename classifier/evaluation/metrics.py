"""Evaluation metrics and tables, computed from arrays of labels and log-probabilities.

Tables list classes in the data set's order and bins from low to high, so equal predictions give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from classifier.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for N >= 1 labelled images of K >= 2 classes.

    labels: `(N,) int64` in 0..K-1. log_probabilities: `(N, K)` float, the log-softmax of the logits, all finite; unlike
    probabilities, they keep the loss accurate where a probability rounds to 0 or 1. class_names: K names.

    Raises UserError, naming the first offending image, when shapes, labels or values are invalid.
    """

    labels: np.ndarray
    log_probabilities: np.ndarray
    class_names: list[str]

    def __post_init__(self) -> None:
        images, classes = len(self.labels), len(self.class_names)
        if images == 0:
            raise UserError("there are no images to evaluate on: the split is empty")
        if classes < 2:
            raise UserError(f"{classes} class names: allowed are 2 or more")
        if self.labels.shape != (images,) or self.log_probabilities.shape != (images, classes):
            raise UserError(
                f"labels {self.labels.shape} and log-probabilities {self.log_probabilities.shape} "
                f"do not fit {images} images of {classes} classes"
            )
        if (wrong := np.flatnonzero((self.labels < 0) | (self.labels >= classes))).size:
            raise UserError(f"image {wrong[0]} has label {self.labels[wrong[0]]}: allowed is 0..{classes - 1}")
        if (wrong := np.flatnonzero(~np.isfinite(self.log_probabilities).all(axis=1))).size:
            raise UserError(f"image {wrong[0]} has log-probabilities that are NaN or Inf: the weights are corrupt")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """`(N, K) float64` in 0..1."""
        import torch  # whose exponential has the bits of portable arithmetic; that of NumPy depends on the processor

        probabilities: np.ndarray = torch.from_numpy(self.log_probabilities).double().exp().numpy()
        return probabilities

    @cached_property
    def predicted(self) -> np.ndarray:
        """`(N,) int64`: the most probable class; the first of equally probable ones."""
        most_probable: np.ndarray = self.log_probabilities.argmax(axis=1)
        return most_probable

    @cached_property
    def top_probability(self) -> np.ndarray:
        """`(N,) float64`: probability of the predicted class."""
        top: np.ndarray = self.probabilities[np.arange(len(self)), self.predicted]
        return top


def evaluate(predictions: Predictions, confidence: float, calibration_bins: int) -> dict[str, float | int]:
    """Return the test metrics by name; all except loss and n are in 0..1.

    loss: mean cross entropy in nats, accumulated in float64. macro_f1: mean F1 over the classes that occur as a label
    or a prediction (scikit-learn's default).
    """
    labels, predicted = predictions.labels, predictions.predicted
    hits = int(accuracy_score(labels, predicted, normalize=False))
    low, high = wilson_interval(hits, len(predictions), confidence)
    log_likelihood = predictions.log_probabilities[np.arange(len(predictions)), labels].astype(np.float64)
    return {
        "accuracy": hits / len(predictions),
        "accuracy_low": low,
        "accuracy_high": high,
        "error_rate": (len(predictions) - hits) / len(predictions),
        "loss": float(-log_likelihood.mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "expected_calibration_error": expected_calibration_error(calibration(predictions, calibration_bins)),
        "n": len(predictions),
    }


def wilson_interval(hits: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, equation (4)).

    Unlike the normal approximation p +- z * s, it stays within 0..1 and keeps its level when all or no trials are hits.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = hits / n
    centre = p + z**2 / (2 * n)
    reach = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    scale = 1 + z**2 / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def calibration(predictions: Predictions, bins: int) -> pd.DataFrame:
    """One row per equal-width bin of the top probability (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Columns: low, high (the bin is low < p <= high), count, confidence (mean top probability), accuracy. Confidence and
    accuracy of an empty bin are NaN.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], predictions.top_probability, side="left")
    count = np.bincount(bin_of, minlength=bins)
    seen = np.where(count > 0, count, np.nan)
    hit = predictions.predicted == predictions.labels
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "confidence": np.bincount(bin_of, predictions.top_probability, bins) / seen,
            "accuracy": np.bincount(bin_of, hit, bins) / seen,
        }
    )


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Mean gap between accuracy and confidence over the bins, weighted by count (Guo et al. 2017, equation (3))."""
    gap = (bins["accuracy"] - bins["confidence"]).abs()
    return float((gap * bins["count"]).sum() / bins["count"].sum())


def per_class(predictions: Predictions) -> pd.DataFrame:
    """One row per class: class (index), name, precision, recall, f1, support (images), predicted (count).

    The precision of a class that is never predicted is 0, and so is the recall of a class without images.
    """
    classes = np.arange(len(predictions.class_names))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.labels, predictions.predicted, labels=classes, zero_division=0
    )
    return pd.DataFrame(
        {
            "class": classes,
            "name": predictions.class_names,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
            "predicted": np.bincount(predictions.predicted, minlength=len(classes)),
        }
    )


def confusion_counts(predictions: Predictions) -> np.ndarray:
    """`(K, K) int64`: images by label (row) and prediction (column)."""
    classes = np.arange(len(predictions.class_names))
    return np.asarray(confusion_matrix(predictions.labels, predictions.predicted, labels=classes))


def confusion(predictions: Predictions) -> pd.DataFrame:
    """One row per pair of classes, including zeros: actual, predicted (names), count.

    `dvc plots` needs this long form; `table.pivot(index="actual", columns="predicted", values="count")` is the matrix.
    """
    names, classes = predictions.class_names, len(predictions.class_names)
    return pd.DataFrame(
        {
            "actual": np.repeat(names, classes),
            "predicted": np.tile(names, classes),
            "count": confusion_counts(predictions).ravel(),
        }
    )


def prediction_table(predictions: Predictions) -> pd.DataFrame:
    """One row per image: index (in the split), label, predicted, p_0 .. p_<K-1> (float32, one per class)."""
    table = pd.DataFrame(
        {"index": np.arange(len(predictions)), "label": predictions.labels, "predicted": predictions.predicted}
    )
    names = [f"p_{number}" for number in range(len(predictions.class_names))]
    return table.join(pd.DataFrame(predictions.probabilities.astype(np.float32), columns=names))


def most_confident_mistakes(predictions: Predictions, count: int) -> np.ndarray:
    """Indices of up to `count` misclassified images, by descending confidence, then by index."""
    mistakes = np.flatnonzero(predictions.predicted != predictions.labels)
    order = np.argsort(-predictions.top_probability[mistakes], kind="stable")
    return mistakes[order][:count]
