"""The training engine: the whole data set is one tensor on the device, and the host looks at it once per window.

The order of the images and the augmentation of an epoch follow from the seed and the epoch's number alone. On CUDA the
steps are replayed as a graph (`classifier.training.graph`), and several seeds are one stack of models
(`classifier.training.stack`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from classifier.data.dataset import Split
from classifier.errors import UserError
from classifier.networks.inference import predict
from classifier.networks.model import Classifier
from classifier.params import TrainParams
from classifier.training.augmentation import Augmentation
from classifier.training.checkpoint import CHECKPOINTS, Checkpoints
from classifier.training.history import Row
from classifier.training.optimizer import gradients, make_optimizer
from classifier.training.schedule import learning_rate

VALIDATION_BATCH = 1000  # images per forward pass


class DivergedError(UserError):
    """Loss or gradients are not finite; the weights are still those before the update."""


def fit(
    classifier: Classifier,
    train: Split,
    validation: Split,
    params: TrainParams,
    device: torch.device,
    report: Callable[[Row], None],
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train `classifier` in place and report each window's and epoch's end (`classifier.training.history`).

    A window has `params.log_every` steps, or those of a whole epoch where that has fewer. Validation results are absent
    when the validation split is empty. Goes on from the last of `checkpoints`, whose rows are reported again. Raises
    DivergedError before an update that would not be finite.
    """
    engine = Engine(classifier.to(device), params, device)
    run_epochs(make_steps(engine, train), validation, lambda seed, row: report(row), checkpoints)


def run_epochs(
    steps: Steps, validation: Split, report: Callable[[int, Row], None], checkpoints: Checkpoints | None
) -> None:
    """As `fit`, for the one or the several models of an engine; a checkpoint holds them all, and their rows in turn."""
    engine, params, seeds = steps.engine, steps.params, steps.engine.seeds
    held_out, held_out_labels = on_device(validation, engine.device)
    images, batches_per_epoch = len(steps.labels), steps.per_epoch
    window = min(params.log_every, batches_per_epoch)
    step = 0
    if checkpoints and (saved := checkpoints.load(params.epochs, batches_per_epoch, window, len(seeds))):
        engine.load(saved.tensors)
        step, engine.steps = saved.position.step, saved.position.window
        for number, row in enumerate(saved.rows):
            report(seeds[number % len(seeds)], row)
    for epoch in range(step // batches_per_epoch + 1, params.epochs + 1):
        steps.begin_epoch(epoch)
        done = step % batches_per_epoch
        if not done:
            engine.epoch_loss.fill(0)
        for batch in range(done + 1, batches_per_epoch + 1):
            steps.step(batch - 1)
            step += 1
            full, last = batch % window == 0, batch == batches_per_epoch
            if full or last:
                seen = (epoch - 1) * images + min(batch * params.batch_size, images)
                rows = [
                    Row(step, epoch, seen, steps.rates[batch - 1], running_loss if full else None)
                    for running_loss in engine.close_window(epoch, step)
                ]
                if last:
                    train_loss = (engine.epoch_loss / images).tolist()
                    results = engine.validate(held_out, held_out_labels)
                    rows = [
                        replace(row, train_loss=mean, validation_loss=loss, validation_accuracy=accuracy)
                        for row, mean, (loss, accuracy) in zip(rows, train_loss, results, strict=True)
                    ]
                for seed, row in zip(seeds, rows, strict=True):
                    report(seed, row)
                    if checkpoints:
                        checkpoints.add(row)
            if checkpoints and (last or step % checkpoints.every == 0):
                checkpoints.save(step, engine.steps, engine.state())
    if checkpoints:
        checkpoints.wait()


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
    return order, Augmentation(params, steps_per_epoch(count, params), random)


def make_steps(engine: Engine, train: Split) -> Steps:
    """How the device takes its steps."""
    if engine.device.type == "cuda":
        from classifier.training.graph import GraphedSteps  # here, since it is built on this module

        return GraphedSteps(engine, train)
    return Steps(engine, train)


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
        picked = self.batches[batch]
        images = self.augment(self.images.index_select(0, picked), batch)
        self.engine.step(images, self.labels[picked], self.rates[batch])


class Engine:
    """One optimizer step at a time, without the host waiting for the device."""

    cpu_layout = torch.channels_last  # convolutions over the last dimension take half the time there

    def __init__(
        self, classifier: Classifier, params: TrainParams, device: torch.device, seeds: Sequence[int] | None = None
    ) -> None:
        """`seeds` are those of a stack of models (`classifier.training.stack`)."""
        self.layout = self.cpu_layout if device.type == "cpu" else torch.contiguous_format
        self.classifier = classifier.train().to(memory_format=self.layout)
        self.device = device
        self.params = params
        self.seeds = seeds or [params.seed]
        self.shape = (len(seeds),) if seeds else ()  # of one number for each model
        self.parameters = dict(classifier.network.named_parameters())
        # Sums of the window, on the device: loss over steps, loss over images, steps before the first bad one.
        self.loss, self.images_loss, self.good_steps = torch.zeros(3, *self.shape, device=device).unbind()
        self.bad = torch.zeros((), device=device)  # 1 from the first bad step on, so that nothing follows it
        self.diverged = self.bad  # of each model
        self.scale = torch.ones((), device=device)
        self.epoch_loss = np.zeros(len(self.seeds))  # of its closed windows, summed over images; on the host
        # The fused kernels of CPU and CUDA skip their update when `bad` is 1; MPS's refuse to be told, so that there
        # the host has to look at each step.
        self.skips_by_itself = device.type in ("cpu", "cuda")
        bad = self.bad if self.skips_by_itself else None
        self.optimizer = make_optimizer(self.parameters, params, bad, len(self.shape))
        self.steps = 0  # in the window

    def step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """Forward, backward and update on raw images `(B, C, 32, 32) uint8` and labels `(B,) int64`."""
        self.update(images, labels, rate)
        self.steps += 1

    def update(self, images: Tensor, labels: Tensor, rate: float | Tensor) -> None:
        """What the device does in `step`, and a graph can replay."""
        normalized = self.classifier.normalize(images).contiguous(memory_format=self.layout)
        with self._autocast():
            logits = self.classifier.network(normalized)
        loss = self._loss(logits.float(), labels)
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward(torch.ones_like(loss))  # type: ignore[no-untyped-call]
        self._watch(loss.detach(), labels.shape[-1])
        if self.skips_by_itself or not self.bad:
            self.optimizer.step(rate)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=self.params.label_smoothing)

    def _watch(self, loss: Tensor, count: int) -> None:
        """Add to the window's sums; stop all updates from the first loss or gradient that is not finite."""
        self._find_bad(loss)
        self.good_steps += 1 - self.diverged
        self.loss += loss
        self.images_loss.add_(loss, alpha=count)

    def _find_bad(self, loss: Tensor) -> None:
        """What a gradient scaler does, with a scale of 1: a single call, after which `bad` stays 1 once it is."""
        torch._amp_foreach_non_finite_check_and_unscale_([loss, *gradients(self.parameters)], self.bad, self.scale)

    def close_window(self, epoch: int, step: int) -> list[float]:
        """Mean loss over the window's steps, of each model: the one place where the host waits."""
        sums = torch.stack([self.loss, self.images_loss, self.good_steps, self.diverged])
        loss, images_loss, good_steps, diverged = sums.reshape(4, -1).tolist()
        if any(diverged):
            ends = zip(good_steps, self.seeds, diverged, strict=True)
            good, seed = min((good, seed) for good, seed, bad in ends if bad)
            who = f"seed {seed}: " if len(self.seeds) > 1 else ""
            bad_step = step - self.steps + int(good) + 1
            rate = self.params.learning_rate
            raise DivergedError(
                f"{who}loss or gradients are not finite at step {bad_step} (epoch {epoch}), stopped before its update; "
                f"likely cause: train.learning_rate {rate:g} is too high, try {rate / 10:g}"
            )
        means = [total / self.steps for total in loss]
        self.epoch_loss += images_loss
        for total in (self.loss, self.images_loss, self.good_steps):
            total.zero_()
        self.steps = 0
        return means

    def validate(self, images: Tensor, labels: Tensor) -> Sequence[tuple[float | None, float | None]]:
        """Mean loss and accuracy (0..1) of each model on the validation split; None for both when it is empty."""
        if not len(labels):
            return [(None, None)] * len(self.seeds)
        logits = predict(self.classifier, images, VALIDATION_BATCH)
        return [(cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item())]

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors that the next step depends on: `weights/...`, `optimizer/...` and `sums/...`."""
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave, bit for bit; the tensors stay where they are and take its values."""
        tensors = self._tensors()
        if wrong := sorted(tensors.keys() ^ state.keys()):
            raise UserError(f"not this training's state, which differs in {wrong!s:.200}; remove {CHECKPOINTS}")
        for name, value in tensors.items():
            saved = state[name]
            if saved.shape != value.shape or saved.dtype != value.dtype or not saved.isfinite().all():
                found = f"{tuple(saved.shape)!s:.80} {saved.dtype}, or not finite"
                allowed = f"finite {tuple(value.shape)} {value.dtype}"
                raise UserError(f"{name} of the checkpoint is {found}: allowed is {allowed}; remove {CHECKPOINTS}")
        for name, value in tensors.items():
            value.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        weights = {f"weights/{name}": value for name, value in self.classifier.network.state_dict().items()}
        optimizer = {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        sums = {f"sums/{name}": getattr(self, name) for name in ("loss", "images_loss", "good_steps", "bad")}
        return weights | optimizer | sums | {"sums/epoch_loss": torch.from_numpy(self.epoch_loss)}

    def _autocast(self) -> AbstractContextManager[object]:
        if self.params.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
