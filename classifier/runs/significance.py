"""Whether a difference is real: McNemar's paired test, and Holm's correction for several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import bdtr

from classifier.errors import UserError


@dataclass(frozen=True)
class Disagreement:
    """Two models on the same images: how many only the one and only the other gets right, and McNemar's p-value."""

    first_alone: int
    second_alone: int
    p: float


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Two-sided p-value of McNemar 1947, exact: images that only one of two models gets right are a fair coin's tosses.

    Exact for 3 images as for 3,000; without any such image it is 1.
    """
    tosses, fewer = first_alone + second_alone, min(first_alone, second_alone)
    if fewer < 0:
        raise UserError(f"{first_alone} and {second_alone} images: allowed is 0 or more")
    return float(min(1.0, 2 * bdtr(fewer, tosses, 0.5)))  # scipy.stats.binomtest's value without its 0.8 s of import


def paired(first: pd.DataFrame, second: pd.DataFrame) -> Disagreement:
    """McNemar's test on two tables of predictions (columns label, predicted), a row per image, the same images in both.

    UserError when they are not of the same images.
    """
    labels = first["label"].to_numpy()
    if not np.array_equal(labels, second["label"].to_numpy()):
        raise UserError(f"the predictions of {len(first)} and {len(second)} images are not of the same images")
    right, right_there = (table["predicted"].to_numpy() == labels for table in (first, second))
    alone = int((right & ~right_there).sum()), int((~right & right_there).sum())
    return Disagreement(*alone, mcnemar(*alone))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many they are: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Comparing one of them with 0.05 keeps the chance of any false alarm among all of them below 5%.
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
