"""The learning rate as a function of the step, so that a schedule has no state to save."""

from __future__ import annotations

from math import pi

from classifier.arithmetic import cosine
from classifier.params import TrainParams


def learning_rate(step: int, steps: int, params: TrainParams) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`.

    one_cycle: Smith and Topin 2018, with the factors of `torch.optim.lr_scheduler.OneCycleLR`: it rises from a 25th
    of the peak and falls to a 250,000th, along half cosines. cosine: Loshchilov and Hutter 2017 without restarts.
    """
    peak = params.learning_rate
    if params.schedule == "constant":
        return peak
    if params.schedule == "cosine":
        return _half_cosine(peak, 0.0, step / steps)
    top = params.warmup_fraction * steps - 1  # the step at which the peak is reached; not always an integer
    if step <= top:
        return _half_cosine(peak / 25, peak, step / top) if top > 0 else peak
    top = max(top, 0.0)
    last = steps - 1
    return _half_cosine(peak, peak / 250_000, (step - top) / (last - top)) if last > top else peak


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + cosine(pi * fraction))
