"""Predictions, and the metrics computed from them.

Counts are integers, so that equal predictions give equal numbers on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import pandas as pd

from classifier.errors import UserError

TOP = 5  # of top-5 accuracy, which is reported for more than 5 classes


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
    def predicted(self) -> np.ndarray:
        """`(N,) int64`: the most probable class; the first of equally probable ones."""
        most_probable: np.ndarray = self.log_probabilities.argmax(axis=1)
        return most_probable

    @cached_property
    def right(self) -> np.ndarray:
        """`(N,) bool`: whether the predicted class is the label."""
        same: np.ndarray = self.predicted == self.labels
        return same

    @cached_property
    def top_probability(self) -> np.ndarray:
        """`(N,) float64`: probability of the predicted class."""
        return exp(self.log_probabilities[np.arange(len(self)), self.predicted])

    @cached_property
    def confusion(self) -> np.ndarray:
        """`(K, K) int64`: images by label (row) and prediction (column)."""
        classes = len(self.class_names)
        counts = np.bincount(self.labels * classes + self.predicted, minlength=classes**2)
        return counts.reshape(classes, classes)


def exp(values: np.ndarray) -> np.ndarray:
    """Exponential in float64, with the bits of portable arithmetic; those of NumPy's depend on the processor."""
    import torch

    powers: np.ndarray = torch.from_numpy(np.ascontiguousarray(values)).double().exp().numpy()
    return powers


def evaluate(predictions: Predictions, confidence: float, calibration_bins: int) -> dict[str, float]:
    """Return the test metrics by name; all except loss are in 0..1.

    - accuracy, and its Wilson interval at `confidence`: accuracy_low, accuracy_high
    - top5_accuracy: share of images whose label is among the five most probable classes; for more than five classes
    - balanced_accuracy: mean recall of the classes that have images
    - macro_f1: mean F1 of the classes that occur as a label or a prediction (scikit-learn's default)
    - roc_auc: mean area under the ROC curve of each class against the rest; of the classes that have images, omitted
      where all images are of one class
    - loss: mean cross entropy in nats, accumulated in float64
    - expected_calibration_error, in `calibration_bins` bins
    """
    log_probabilities, labels, n = predictions.log_probabilities, predictions.labels, len(predictions)
    hits = int(predictions.right.sum())
    low, high = wilson_interval(hits, n, confidence)
    images, guesses = predictions.confusion.sum(axis=1), predictions.confusion.sum(axis=0)
    right = predictions.confusion.diagonal()
    present, occurring = images > 0, images + guesses > 0
    areas = roc_areas(predictions)
    return {
        "accuracy": hits / n,
        "accuracy_low": low,
        "accuracy_high": high,
        **({"top5_accuracy": top_hits(predictions, TOP) / n} if len(images) > TOP else {}),
        "balanced_accuracy": float((right[present] / images[present]).mean()),
        "macro_f1": float((2 * right[occurring] / (images + guesses)[occurring]).mean()),
        **({"roc_auc": float(np.nanmean(areas))} if present.sum() > 1 else {}),
        "loss": float(-log_probabilities[np.arange(n), labels].astype(np.float64).mean()),
        "expected_calibration_error": expected_calibration_error(calibration(predictions, calibration_bins)),
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


def top_hits(predictions: Predictions, k: int) -> int:
    """Number of images whose label is among the `k` most probable classes; the first of equally probable ones win."""
    of_label = predictions.log_probabilities[np.arange(len(predictions)), predictions.labels][:, None]
    earlier = np.arange(len(predictions.class_names)) < predictions.labels[:, None]
    ahead = (predictions.log_probabilities > of_label) | ((predictions.log_probabilities == of_label) & earlier)
    return int((ahead.sum(axis=1) < k).sum())


def roc_areas(predictions: Predictions) -> np.ndarray:
    """`(K,) float64`: area under the ROC curve of each class against the rest, NaN if it has no images or all of them.

    The area is the probability that an image of the class gets a higher probability of it than one of another class,
    counting ties as one half (Hanley and McNeil 1982).
    """
    areas = np.full(len(predictions.class_names), np.nan)
    for number, scores in enumerate(predictions.log_probabilities.T):
        of_class = predictions.labels == number
        inside, outside = scores[of_class], np.sort(scores[~of_class])
        if len(inside) and len(outside):
            halves = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
            areas[number] = int(halves.sum()) / (2 * len(inside) * len(outside))
    return areas


def calibration(predictions: Predictions, bins: int) -> pd.DataFrame:
    """One row per equal-width bin of the top probability (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Columns: low, high (the bin is low < p <= high), count, confidence (mean top probability), accuracy. Confidence and
    accuracy of an empty bin are NaN.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.searchsorted(edges[1:-1], predictions.top_probability, side="left")
    count = np.bincount(bin_of, minlength=bins)
    seen = np.where(count > 0, count, np.nan)
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "count": count,
            "confidence": np.bincount(bin_of, predictions.top_probability, bins) / seen,
            "accuracy": np.bincount(bin_of, predictions.right, bins) / seen,
        }
    )


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Mean gap between accuracy and confidence over the bins, weighted by count (Guo et al. 2017, equation (3))."""
    gap = (bins["accuracy"] - bins["confidence"]).abs()
    return float((gap * bins["count"]).sum() / bins["count"].sum())


def most_confident_errors(predictions: Predictions, count: int) -> np.ndarray:
    """Indices of up to `count` misclassified images, by descending confidence, then by index."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.top_probability[wrong], kind="stable")
    return wrong[order][:count]
