"""Which weights a training ends with: the last, their moving average, or those of the best epoch.

All state is in tensors, with those of the engine, so that checkpoints hold it and every process has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import isfinite

import torch
from torch import Tensor

from classifier.networks.model import Classifier


def values(classifier: Classifier) -> dict[str, Tensor]:
    """All parameters and buffers of the network."""
    return dict(classifier.network.named_parameters()) | dict(classifier.network.named_buffers())


class Average:
    """The exponential moving average of a network's weights (Polyak and Juditsky 1992), and of its float buffers.

    The first steps have a smaller decay, of at most (1 + steps) / (10 + steps), as in timm.
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self.decay, self.source = decay, classifier
        self.classifier = deepcopy(classifier).requires_grad_(False).eval()
        self.updates = torch.zeros((), device=next(classifier.network.parameters()).device)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        for average, value in zip(values(self.classifier).values(), values(self.source).values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        return {f"weights/{name}": value for name, value in values(self.classifier).items()} | {"updates": self.updates}


class Best:
    """A copy of the weights of the epoch with the best value of a validation metric, the first of ties."""

    def __init__(self, classifier: Classifier, metric: str, patience: int | None) -> None:
        self.source, self.metric, self.patience = classifier, metric, patience
        self.weights = {name: value.detach().clone() for name, value in values(classifier).items()}
        self.value = torch.zeros((), dtype=torch.float64)
        self.since = torch.full((), -1)  # epochs since the best one; -1: no epoch had a value

    @torch.no_grad()
    def judge(self, results: Mapping[str, float | None]) -> None:
        """Call at the end of an epoch, with its validation values."""
        value = results[self.metric]
        assert value is not None, "without validation images nothing is best"
        sign = 1 if self.metric == "validation_accuracy" else -1
        if isfinite(value) and (self.since < 0 or sign * value > sign * self.value):
            self.value.fill_(value)
            self.since.zero_()
            for name, current in values(self.source).items():
                self.weights[name].copy_(current)
        elif self.since >= 0:
            self.since += 1

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and bool(self.since >= self.patience)

    def tensors(self) -> dict[str, Tensor]:
        return {f"weights/{name}": value for name, value in self.weights.items()} | {
            "value": self.value,
            "since": self.since,
        }
