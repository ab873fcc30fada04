"""Statistics over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np


def summarize(values: Sequence[float], highest: float = math.inf) -> dict[str, float]:
    """Mean, standard deviation (n - 1), and the mean's 95% interval, of two or more values in 0..highest."""
    center, deviation = mean(values), stdev(values)
    low, high = interval(center, deviation, len(values), highest)
    return {"mean": center, "std": deviation, "low": float(low), "high": float(high)}


def interval(center: Any, deviation: Any, count: Any, highest: float) -> tuple[Any, Any]:
    """The 95% interval of a mean by Student's t, within 0..highest; for numbers or pandas columns."""
    from scipy.special import stdtrit  # here, because only several seeds and the leaderboard need it

    reach = stdtrit(count - 1, 0.975) * deviation / count**0.5
    return np.clip(center - reach, 0, highest), np.clip(center + reach, 0, highest)
