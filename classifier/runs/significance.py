"""Significance of differences: McNemar's paired test, and Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import bdtr

from classifier.errors import UserError


@dataclass(frozen=True)
class Disagreement:
    """Numbers of images that only the first and only the second model predicts correctly, and McNemar's p-value."""

    first_alone: int
    second_alone: int
    p: float


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Two-sided p-value of McNemar's exact test (1947) for images that only one of two models predicts correctly.

    Under the null hypothesis, each of them is a toss of a fair coin. Without such images the p-value is 1.
    """
    tosses, fewer = first_alone + second_alone, min(first_alone, second_alone)
    if fewer < 0:
        raise UserError(f"{first_alone} and {second_alone} images: allowed is 0 or more")
    return float(min(1.0, 2 * bdtr(fewer, tosses, 0.5)))  # scipy.stats.binomtest's value without its 0.8 s of import


def paired(first: pd.DataFrame, second: pd.DataFrame) -> Disagreement:
    """McNemar's test on two tables of predictions of the same images: a row per image, columns label and predicted.

    Raises UserError if they are not of the same images.
    """
    labels = first["label"].to_numpy()
    if not np.array_equal(labels, second["label"].to_numpy()):
        raise UserError(f"the predictions of {len(first)} and {len(second)} images are not of the same images")
    right, right_there = (table["predicted"].to_numpy() == labels for table in (first, second))
    alone = int((right & ~right_there).sum()), int((~right & right_there).sum())
    return Disagreement(*alone, mcnemar(*alone))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values with the correction of Holm 1979, "A simple sequentially rejective multiple test procedure".

    If each is compared with 0.05, the probability of one or more false positives is at most 5%.
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
