"""Accuracy on corrupted test images (`classifier.evaluation.corruptions`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from classifier.evaluation.corruptions import KINDS, STRENGTHS
from classifier.evaluation.metrics import wilson_interval

IMAGES = 2000  # at most, evenly spaced over the test split; each is predicted once per condition
COLUMNS = ["corruption", "strength", "images", "accuracy", "accuracy_low", "accuracy_high"]


def conditions(kinds: Sequence[str]) -> list[tuple[str, int]]:
    """Every kind at every strength, kinds in the order of `KINDS`."""
    return [(kind, strength) for kind in KINDS if kind in kinds for strength in STRENGTHS]


def table(kinds: Sequence[str], right: np.ndarray, confidence: float) -> pd.DataFrame:
    """One row per corruption and strength, with the accuracy's Wilson interval.

    right: `(conditions, N) bool`, for each of `conditions(kinds)` and each image whether the prediction is right.
    """
    n = right.shape[1]
    rows = [
        (kind, strength, n, int(hits.sum()) / n, *wilson_interval(int(hits.sum()), n, confidence))
        for (kind, strength), hits in zip(conditions(kinds), right, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def metrics(table: pd.DataFrame) -> dict[str, float]:
    """The mean accuracy of each kind, and over all kinds if all were measured, so that runs are comparable."""
    means = of_kinds(table)
    every = {"corrupted_accuracy": sum(means.values()) / len(means)} if len(means) == len(KINDS) else {}
    return every | {f"corrupted_accuracy/{kind}": mean for kind, mean in means.items()}


def of_kinds(table: pd.DataFrame) -> dict[str, float]:
    """The mean accuracy over the strengths of each kind."""
    return {str(kind): float(rows["accuracy"].mean()) for kind, rows in table.groupby("corruption", sort=False)}
