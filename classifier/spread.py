"""What several seeds say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of two or more values: mean, standard deviation (n - 1), and the mean's 95% interval by Student's t."""
    from scipy.stats import t  # takes 0.5 s, and only replicas need it

    center, deviation = mean(values), stdev(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": center, "std": deviation, "low": center - reach, "high": center + reach}
