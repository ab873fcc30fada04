"""The training engine: the whole data set is one tensor on the device, and the host looks at it once per window.

The order of the images and the augmentation of an epoch follow from the seed and the epoch's number alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from classifier.augmentation import Augmentation
from classifier.dataset import Split
from classifier.history import Row
from classifier.inference import predict
from classifier.model import Classifier
from classifier.params import TrainParams
from classifier.schedule import learning_rate

VALIDATION_BATCH = 1000  # images per forward pass


class DivergedError(ValueError):
    """Loss or gradients are not finite; the weights are still those before the update."""


def fit(
    classifier: Classifier,
    train: Split,
    validation: Split,
    params: TrainParams,
    device: torch.device,
    report: Callable[[Row], None],
) -> None:
    """Train `classifier` in place and call `report` at each window's and each epoch's end (`classifier.history`).

    A window has `params.log_every` steps, or those of a whole epoch where that has fewer. Validation results are absent
    when the validation split is empty. Raises DivergedError before an update that would not be finite.
    """
    images, labels = (torch.from_numpy(array).to(device) for array in (train.images, train.labels))
    held_out, held_out_labels = (torch.from_numpy(array).to(device) for array in (validation.images, validation.labels))
    classifier.to(device)
    engine = Engine(classifier, params, device)
    batches_per_epoch = steps_per_epoch(len(train), params)
    steps, window = params.epochs * batches_per_epoch, min(params.log_every, batches_per_epoch)
    step = seen = 0
    for epoch in range(1, params.epochs + 1):
        epoch_loss = 0.0  # summed over images
        batches, augment = plan_epoch(len(train), epoch, params, device)
        for batch, picked in enumerate(batches, start=1):
            rate = learning_rate(step, steps, params)
            engine.step(augment(images[picked], batch - 1), labels[picked], rate)
            step += 1
            seen += len(picked)
            full, last = batch % window == 0, batch == len(batches)
            if not (full or last):
                continue
            running_loss, images_loss = engine.close_window(epoch, step)
            epoch_loss += images_loss
            row = Row(step, epoch, seen, rate, running_loss if full else None)
            if last:
                loss, accuracy = validate(classifier, held_out, held_out_labels)
                row = replace(
                    row, train_loss=epoch_loss / len(train), validation_loss=loss, validation_accuracy=accuracy
                )
            report(row)


def steps_per_epoch(images: int, params: TrainParams) -> int:
    """Optimizer steps in one pass; the last one may have a smaller batch."""
    return -(-images // params.batch_size)


def plan_epoch(
    count: int, epoch: int, params: TrainParams, device: torch.device
) -> tuple[tuple[Tensor, ...], Augmentation]:
    """Which of `count` images are in each batch, `(B,) int64` in the epoch's order, and the epoch's augmentation."""
    random = np.random.default_rng([params.seed, epoch])
    order = torch.from_numpy(random.permutation(count)).to(device)
    batches = torch.split(order, params.batch_size)
    return batches, Augmentation(params, len(batches), random)


class Engine:
    """One optimizer step at a time, without the host waiting for the device."""

    def __init__(self, classifier: Classifier, params: TrainParams, device: torch.device) -> None:
        # On a CPU, convolutions over the last dimension take half the time.
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.classifier = classifier.train().to(memory_format=layout)
        self.layout = layout
        self.device = device
        self.params = params
        self.parameters = list(classifier.parameters())
        self.optimizer = make_optimizer(self.parameters, params)
        # Sums of the window, on the device: loss over steps, loss over images, steps before the first bad one.
        self.loss, self.images_loss, self.good_steps = torch.zeros(3, device=device).unbind()
        self.bad = torch.zeros((), device=device)  # 1 from the first bad step on, so that nothing follows it
        # The fused optimizers of CPU and CUDA skip their update when `found_inf` is 1; MPS's refuse to be told, so that
        # there the host has to look at each step.
        self.skips_by_itself = device.type in ("cpu", "cuda")
        if self.skips_by_itself:
            self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self.steps = 0  # in the window

    def step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        """Forward, backward and update on raw images `(B, C, 32, 32) uint8` and labels `(B,) int64`."""
        normalized = self.classifier.normalize(images).contiguous(memory_format=self.layout)
        with self._autocast():
            logits = self.classifier.network(normalized)
        loss = cross_entropy(logits.float(), labels, label_smoothing=self.params.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._watch(loss.detach(), len(labels))
        self.optimizer.param_groups[0]["lr"] = rate
        if self.skips_by_itself or not self.bad:
            self.optimizer.step()

    def _watch(self, loss: Tensor, count: int) -> None:
        """Add to the window's sums; stop all updates from the first loss or gradient that is not finite."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch.maximum(self.bad, (loss + norm).isfinite().logical_not(), out=self.bad)
        self.good_steps += 1 - self.bad
        self.loss += loss
        self.images_loss.add_(loss, alpha=count)
        self.steps += 1

    def close_window(self, epoch: int, step: int) -> tuple[float, float]:
        """Mean loss over the window's steps and loss summed over its images: the one place where the host waits."""
        sums = torch.stack([self.loss, self.images_loss, self.good_steps, self.bad])
        loss, images_loss, good_steps, bad = sums.tolist()
        if bad:
            bad_step = step - self.steps + int(good_steps) + 1
            rate = self.params.learning_rate
            raise DivergedError(
                f"loss or gradients are not finite at step {bad_step} (epoch {epoch}), stopped before its update; "
                f"likely cause: train.learning_rate {rate:g} is too high, try {rate / 10:g}"
            )
        mean = loss / self.steps
        for total in (self.loss, self.images_loss, self.good_steps):
            total.zero_()
        self.steps = 0
        return mean, images_loss

    def _autocast(self) -> AbstractContextManager[object]:
        if self.params.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def make_optimizer(parameters: list[torch.nn.Parameter], params: TrainParams) -> torch.optim.Optimizer:
    """SGD or AdamW in their fused form: one kernel for all parameters."""
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=params.learning_rate,
        momentum=params.momentum,
        nesterov=params.nesterov,
        weight_decay=params.weight_decay,
        fused=True,
    )


def validate(classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[float, float] | tuple[None, None]:
    """Mean loss and accuracy (0..1) on the validation split, on the device; None for both when it is empty."""
    if not len(labels):
        return None, None
    logits = predict(classifier, images, VALIDATION_BATCH)
    return cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
