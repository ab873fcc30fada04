"""The steps of an epoch: which images each takes, how they are augmented, and at which learning rate.

Order and augmentation depend only on the seed and the epoch's number, so that no generator has a state to save.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from classifier.data.dataset import Split
from classifier.networks.model import normalized
from classifier.params import TrainParams
from classifier.training.augmentation import Augmentation, Draws, generator
from classifier.training.engine import Engine, Part
from classifier.training.mixing import Mixing
from classifier.training.schedule import learning_rate
from classifier.training.sources import OnDisk, ReadAhead


def on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images `(N, C, H, W) uint8` and labels `(N,) int64`."""
    return torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)


def on_disk(split: Split, device: torch.device) -> tuple[OnDisk, Tensor]:
    """The same, with the images in their files until they are needed."""
    return OnDisk(split, device), torch.from_numpy(split.labels).to(device)


def steps_per_epoch(images: int, params: TrainParams) -> int:
    """Optimizer steps in one pass; the last one may have a smaller batch."""
    return -(-images // params.batch_size)


def plan_epoch(labels: Tensor, size: int, epoch: int, seed: int, params: TrainParams) -> tuple[Tensor, Draws]:
    """The epoch's order of the images, `(N,) int64`, and for each place in it the draws of its image.

    `labels (N,)` are those of the training images, of `size` pixels.
    """
    count, random = len(labels), generator(seed, epoch)
    order = torch.from_numpy(random.permutation(count))
    if params.balance == "sampling":
        order = balanced(labels.cpu().numpy(), generator(seed, epoch, 6))
    draws = Augmentation(params.augment, size).draw(seed, epoch, count, params.batch_size, random)
    return order, draws | Mixing(params.augment, size).draw(seed, epoch, count)


def balanced(labels: np.ndarray, random: np.random.Generator) -> Tensor:
    """As many images as there are labels, in random order; the numbers of images per class differ by at most one.

    A class with more images leaves some out; a class with fewer repeats all of them before it repeats one again.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    quotas = np.full(len(members), len(labels) // len(members))
    quotas[random.permutation(len(members))[: len(labels) % len(members)]] += 1
    picked = [
        np.concatenate([random.permutation(those) for _ in range(-(-quota // len(those)))])[:quota]
        for those, quota in zip(members, quotas, strict=True)
    ]
    return torch.from_numpy(random.permutation(np.concatenate(picked)))


class Steps:
    """The steps of an epoch on training images that stay on the device; kernels are launched one by one."""

    resident = True

    def __init__(self, engine: Engine, train: Split) -> None:
        self.engine, self.params, self.shape = engine, engine.params, train.shape
        self.labels = torch.from_numpy(train.labels).to(engine.device)
        self.per_epoch = steps_per_epoch(len(train), self.params)
        self._hold(train)
        size = train.shape[-1]
        self.augment, self.mix = Augmentation(self.params.augment, size), Mixing(self.params.augment, size)
        # A value per pixel, because PyTorch uses no vector instructions to broadcast a value per channel.
        self.offset, self.scale = (
            values.expand(-1, size, size).contiguous() for values in (engine.classifier.offset, engine.classifier.scale)
        )
        if self.params.balance == "loss":
            engine.weigh_classes(self.labels)
        self.batches = torch.split(torch.arange(len(train), device=engine.device), self.params.batch_size)  # places

    def _hold(self, train: Split) -> None:
        self.images, _ = on_device(train, self.engine.device)

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.engine.begin_epoch(epoch)
        (seed,) = self.engine.seeds
        self.order_on_host, draws = self._plan(seed, epoch)
        self.order = self.order_on_host.to(self.engine.device)
        self.draws = {name: values.to(self.engine.device) for name, values in draws.items()}
        self.rates = self._rates(epoch)

    def _plan(self, seed: int, epoch: int) -> tuple[Tensor, Draws]:
        return plan_epoch(self.labels, self.shape[-1], epoch, seed, self.params)

    def _rates(self, epoch: int) -> list[float]:
        """The learning rates of the epoch's steps."""
        total, start = self.params.epochs * self.per_epoch, (epoch - 1) * self.per_epoch
        return [learning_rate(start + batch, total, self.params) for batch in range(self.per_epoch)]

    def step(self, batch: int) -> None:
        """Train on the epoch's batch number `batch`, from 0."""
        self.engine.begin_step(self.epoch, batch)
        self.engine.step(self._parts(self.batches[batch]), len(self.batches[batch]), self.rates[batch])

    def _parts(self, places: Tensor) -> Iterator[Part]:
        """Yield this process's parts of the batch at these places in the epoch's order."""
        models = self.order.ndim - 1  # a stack of models has an order for each
        for number, own in self.engine.parts.of(places):
            picked = self.order.index_select(models, own)
            draws = {name: values.index_select(models, own) for name, values in self.draws.items()}
            moved = self.augment(self._take(picked), draws)
            yield number, *self.mix(normalized(moved, self.offset, self.scale), self.labels[picked], draws)

    def _take(self, picked: Tensor) -> Tensor:
        """The images at `picked (..., B)`, as `(..., B, C, H, W) uint8`."""
        return self.images.index_select(0, picked.flatten()).view(*picked.shape, *self.shape)


class StreamedSteps(Steps):
    """`Steps` on images that stay in their files and are read a few batches ahead: the same images, the same bits."""

    resident = False

    def _hold(self, train: Split) -> None:
        self.read_ahead = ReadAhead(OnDisk(train, self.engine.device))
        self.places = torch.split(torch.arange(len(train)), self.params.batch_size)  # on the host, which asks

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        self.read_ahead.forget()
        self.asked = 0  # batches of the epoch

    def step(self, batch: int) -> None:
        self._ask(batch)
        super().step(batch)

    def _ask(self, batch: int) -> None:
        """Ask for the images of the batches up to a few after `batch`."""
        last = min(batch + self.read_ahead.ahead, self.per_epoch - 1)
        for coming in range(max(batch, self.asked), last + 1):
            for _, places in self.engine.parts.of(self.places[coming]):
                self.read_ahead.ask(self.order_on_host[places])
        self.asked = last + 1

    def _take(self, picked: Tensor) -> Tensor:
        return self.read_ahead.next()
