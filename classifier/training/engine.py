"""One optimizer step at a time, on tensors that stay on the device: the host reads them once per window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from classifier.errors import UserError
from classifier.networks.inference import Images, predict
from classifier.networks.model import Classifier, head_of
from classifier.params import TrainParams
from classifier.training.buffers import Buffers
from classifier.training.checkpoint import CHECKPOINTS
from classifier.training.compilation import Compiled
from classifier.training.kept import Average, Best, values
from classifier.training.loss import losses
from classifier.training.mixing import Targets
from classifier.training.optimizer import gradients, make_optimizer
from classifier.training.parts import Parts, computation_of
from classifier.workers import ALONE, Crew

VALIDATION_BATCH = 1000  # images of 32x32 per forward pass, fewer of larger ones

Part = tuple[int, Tensor, Targets]  # number, normalized images `(B, C, H, W)`, labels


class DivergedError(UserError):
    """Loss or gradients are not finite. The weights are those before the update."""


class Engine:
    """A classifier, its optimizer and the window's sums, as tensors on the device."""

    # Convolutions over the last dimension take half the time on a CPU, and a GPU's matrix units need it.
    fast_layout = torch.channels_last

    def __init__(
        self,
        classifier: Classifier,
        params: TrainParams,
        device: torch.device,
        seeds: Sequence[int] | None = None,
        crew: Crew = ALONE,
    ) -> None:
        """`seeds`: of a stack of models (`classifier.training.stack`). `crew`: the processes that share the parts."""
        channels_last = device.type == "cpu" or (device.type == "cuda" and params.precision != "float32")
        self.layout = self.fast_layout if channels_last else torch.contiguous_format
        self.classifier = classifier.train().to(memory_format=self.layout)
        self.device = device
        self.params = params
        self.computation = computation_of(params, device)
        self.seeds = seeds or [params.seed]
        self.shape = (len(seeds),) if seeds else ()  # of a value per model
        network = classifier.network
        self.parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
        # The window's sums: loss over steps, loss over images, steps before the first that is not finite.
        self.loss, self.images_loss, self.good_steps = torch.zeros(3, *self.shape, device=device).unbind()
        self.found_inf = torch.zeros((), device=device)  # 1 from the first step that is not finite: no update follows
        self.diverged = self.found_inf  # per model
        self.scale = torch.ones((), device=device)
        self.epoch_loss = np.zeros(len(self.seeds))  # of the epoch's closed windows, summed over images; on the host
        # The fused optimizers of CPU and CUDA skip the update when `found_inf` is 1. Those of MPS do not take it, so
        # there the host checks each step.
        self.skips_by_itself = device.type in ("cpu", "cuda")
        found_inf = self.found_inf if self.skips_by_itself else None
        self.optimizer = make_optimizer(self.parameters, params, found_inf, len(self.shape))
        self.steps = 0  # in the window
        self.place = (0, 0)  # epoch, and number of the batch in it
        self.frozen = False
        self.forward: Callable[[Tensor], Tensor] = network
        self.parts = Parts(self.computation.parts, self.parameters, Buffers(network), self.loss, crew)
        self.average = Average(self.classifier, params.keep.ema) if params.keep.ema else None
        self.best: Best | None = None
        if params.keep.weights != "last":
            self.best = Best(self.validated, params.keep.weights, params.keep.patience)
        self.class_weights: Tensor | None = None  # `(classes,)`
        self.logits: Tensor | None = None  # of the validation split, where processes share it
        self.hold_out(torch.empty(0), torch.empty(0))

    @property
    def compiles(self) -> bool:
        return self.params.compile and self.device.type == "cuda"

    def compile(self) -> None:
        """Generate the network's kernels at the next step, if `params` ask for it."""
        if self.compiles:
            self.forward = Compiled(self.classifier.network, self.params, self.parts.count)

    def begin_epoch(self, epoch: int) -> None:
        """Freeze all layers but the last, or unfreeze them, as `params.freeze` says."""
        frozen = self.params.freeze == "always" or epoch <= self.params.freeze
        if frozen == self.frozen:
            return
        self.frozen, network = frozen, self.classifier.network
        head = head_of(network)
        if not head:
            raise UserError(
                "train.freeze: the network has neither a linear layer nor a convolution to train: set it to 0"
            )
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(not frozen or name in head)
            parameter.grad = None  # so that no optimizer updates it
        # Frozen layers also keep their running statistics.
        self.classifier.evaluated = [
            each for each in network.modules() if frozen and getattr(each, "running_mean", None) is not None
        ]
        self.classifier.train()
        self.parts.lay_out()

    def begin_step(self, epoch: int, batch: int) -> None:
        """Call before the step on the epoch's batch number `batch`, from 0."""
        self.place = epoch, batch
        if self.device.type == "cuda":  # a CUDA graph cannot seed its generator
            self._seed(self.parts.crew.rank)

    def step(self, batch: Iterable[Part], size: int, rate: float) -> None:
        """Forward, backward and update on the parts of a batch of `size` images that are this process's."""
        self.update(batch, size, rate)
        self.steps += 1

    def update(self, batch: Iterable[Part], size: int, rate: float | Tensor) -> None:
        """The device's share of `step`, which a CUDA graph can replay."""
        for number, images, targets in batch:
            self.parts.begin()
            if self.device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
                self._seed(number)
            with self._autocast():
                logits = self.forward(images.contiguous(memory_format=self.layout))
            self.parts.backward(number, self._loss(logits.float(), targets), targets.labels.shape[-1] / size)
        if isinstance(self.forward, Compiled):
            self.forward.tell()
        self._watch(self.parts.sum(size), size)
        if self.params.clip is not None:
            clip_grad_norm_(self.parameters.values(), self.params.clip)
        if self.skips_by_itself or not self.found_inf:
            self.optimizer.step(rate)
            if self.average:
                self.average.update()

    def _seed(self, part: int) -> None:
        """Seed what a network draws at random, as dropout does, by the seed, the epoch, the step and the part."""
        key = " ".join(map(str, (*self.seeds, *self.place, part))).encode()
        generator = torch.default_generator
        if self.device.type == "cuda":
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
        elif self.device.type == "mps":
            generator = torch.mps._get_default_mps_generator()
        generator.manual_seed(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))

    def _loss(self, logits: Tensor, targets: Targets) -> Tensor:
        smoothing, weights = self.params.label_smoothing, self.class_weights
        if targets.shares is None and weights is None:
            return cross_entropy(logits, targets.labels, label_smoothing=smoothing)
        return losses(logits, targets, smoothing, weights).mean()

    def _watch(self, loss: Tensor, count: int) -> None:
        """Add to the window's sums. After the first loss or gradient that is not finite, nothing is updated."""
        self._find_inf(loss)
        self.good_steps += 1 - self.diverged
        self.loss += loss
        self.images_loss.add_(loss, alpha=count)

    def _find_inf(self, loss: Tensor) -> None:
        """Set `found_inf` as a gradient scaler does, with a scale of 1, in one call; it is never set back to 0."""
        torch._amp_foreach_non_finite_check_and_unscale_(
            [loss, *gradients(self.parameters)], self.found_inf, self.scale
        )

    def close_window(self, epoch: int, step: int) -> list[float]:
        """Mean loss of each model over the window's steps. The only place where the host waits for the device.

        Raises DivergedError when a step of the window was not finite.
        """
        sums = torch.stack([self.loss, self.images_loss, self.good_steps, self.diverged])
        loss, images_loss, good_steps, diverged = sums.reshape(4, -1).tolist()
        if any(diverged):
            ends = zip(good_steps, self.seeds, diverged, strict=True)
            good, seed = min((good, seed) for good, seed, found_inf in ends if found_inf)
            who = f"seed {seed}: " if len(self.seeds) > 1 else ""
            first = step - self.steps + int(good) + 1
            rate = self.params.learning_rate
            raise DivergedError(
                f"{who}loss or gradients are not finite at step {first} (epoch {epoch}), stopped before its update; "
                f"likely cause: train.learning_rate {rate:g} is too high, try {rate / 10:g}"
            )
        means = [total / self.steps for total in loss]
        self.epoch_loss += images_loss
        for total in (self.loss, self.images_loss, self.good_steps):
            total.zero_()
        self.steps = 0
        return means

    def hold_out(self, images: Images, labels: Tensor) -> None:
        """Set the validation split. Call it before other processes begin."""
        self.held_out, self.held_out_labels = images, labels
        if self.parts.crew.size > 1 and len(images):
            self.logits = self.parts.crew.share(len(images), predict(self.classifier, images[:1], 1).shape[1])

    def weigh_classes(self, labels: Tensor) -> None:
        """Give all classes of the training labels the same weight in the loss; the mean weight of an image is 1."""
        counts = labels.bincount().float()
        self.class_weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))

    @property
    def validated(self) -> Classifier:
        """The classifier that is validated and kept: the average, if there is one."""
        return self.average.classifier if self.average else self.classifier

    def end_epoch(self) -> Sequence[tuple[float | None, float | None]]:
        """Validate, and keep the weights if they are the best."""
        results = self.validate()
        if self.best:
            self.best.judge(dict(zip(("validation_loss", "validation_accuracy"), results[0], strict=True)))
        return results

    @property
    def stops(self) -> bool:
        """Whether training ends early: after `patience` epochs without a better value."""
        return self.best is not None and self.best.exhausted

    @torch.no_grad()
    def finish(self) -> None:
        """Copy the kept weights into the classifier."""
        kept = self.best.weights if self.best and self.best.since >= 0 else values(self.validated)
        for name, value in values(self.classifier).items():
            value.copy_(kept[name])

    def validate(self) -> Sequence[tuple[float | None, float | None]]:
        """Mean loss and accuracy (0..1) of each model on the validation split; None for both when it is empty."""
        labels = self.held_out_labels
        if not len(labels):
            return [(None, None)] * len(self.seeds)
        logits = predict(self.validated, self.held_out, self._validation_batch(), self.parts.crew, self.logits)
        return [(cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item())]

    def _validation_batch(self) -> int:
        height, width = self.held_out[:1].shape[-2:]
        return max(1, VALIDATION_BATCH * 32 * 32 // (height * width))

    def state(self) -> dict[str, Tensor]:
        """Copies of `tensors`: `weights/...`, `optimizer/...` and `sums/...`."""
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in self.tensors().items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the values of `state()`, bit for bit. They are copied into the tensors in place."""
        tensors = self.tensors()
        if wrong := sorted(tensors.keys() ^ state.keys()):
            raise UserError(f"the checkpoint is of another training, as {wrong!s:.200} differ; remove {CHECKPOINTS}")
        for name, value in tensors.items():
            saved = state[name]
            broken = value.isfinite().all() and not saved.isfinite().all()  # a mask need not be finite
            if saved.shape != value.shape or saved.dtype != value.dtype or broken:
                found = f"{tuple(saved.shape)!s:.80} {saved.dtype}, or not finite"
                allowed = f"finite {tuple(value.shape)} {value.dtype}"
                raise UserError(f"{name} of the checkpoint is {found}: allowed is {allowed}; remove {CHECKPOINTS}")
        for name, value in tensors.items():
            value.copy_(state[name])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on."""
        weights = {f"weights/{name}": value for name, value in values(self.classifier).items()}
        optimizer = {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        sums = {f"sums/{name}": getattr(self, name) for name in ("loss", "images_loss", "good_steps", "found_inf")}
        kept = {f"average/{name}": value for name, value in self.average.tensors().items()} if self.average else {}
        kept |= {f"best/{name}": value for name, value in self.best.tensors().items()} if self.best else {}
        return weights | optimizer | sums | kept | {"sums/epoch_loss": torch.from_numpy(self.epoch_loss)}

    def _autocast(self) -> AbstractContextManager[object]:
        if self.params.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
