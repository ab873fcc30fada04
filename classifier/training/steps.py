"""The steps of an epoch: which images each takes, how they are augmented, and at which learning rate.

Order and augmentation follow from the seed and the epoch's number alone, so that no generator has a state to save.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from classifier.data.dataset import Split
from classifier.params import TrainParams
from classifier.training.augmentation import Augmentation
from classifier.training.engine import Engine, Part
from classifier.training.schedule import learning_rate


def on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images `(N, C, 32, 32) uint8` and labels `(N,) int64`."""
    return torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)


def steps_per_epoch(images: int, params: TrainParams) -> int:
    """Optimizer steps in one pass; the last one may have a smaller batch."""
    return -(-images // params.batch_size)


def plan_epoch(count: int, epoch: int, seed: int, params: TrainParams) -> tuple[Tensor, Augmentation]:
    """The epoch's order of `count` images, `(count,) int64`, and its augmentation."""
    random = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(random.permutation(count))
    return order, Augmentation(params.augment, steps_per_epoch(count, params), random)


class Steps:
    """The steps of an epoch on the training images, which stay on the device: an engine's, one kernel after another."""

    def __init__(self, engine: Engine, train: Split) -> None:
        self.engine, self.params = engine, engine.params
        self.images, self.labels = on_device(train, engine.device)
        self.per_epoch = steps_per_epoch(len(train), self.params)

    def begin_epoch(self, epoch: int) -> None:
        (seed,) = self.engine.seeds
        order, self.augment = plan_epoch(len(self.labels), epoch, seed, self.params)
        self.batches = torch.split(order.to(self.engine.device), self.params.batch_size)
        self.rates = self._rates(epoch)

    def _rates(self, epoch: int) -> list[float]:
        """The learning rates of the epoch's steps."""
        total, start = self.params.epochs * self.per_epoch, (epoch - 1) * self.per_epoch
        return [learning_rate(start + batch, total, self.params) for batch in range(self.per_epoch)]

    def step(self, batch: int) -> None:
        """On the epoch's batch number `batch`, from 0."""
        self.engine.step(self._parts(batch), len(self.batches[batch]), self.rates[batch])

    def _parts(self, batch: int) -> Iterator[Part]:
        """Those of this process, one after the other."""
        for number, picked in self.engine.parts.of(self.batches[batch]):
            yield number, self.augment(self.images.index_select(0, picked), batch), self.labels[picked]
