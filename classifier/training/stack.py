"""Several seeds as one stack of models: every operation computes all of them, so that small nets fill a GPU.

Each has its own weights, order of images, augmentation and curves, and equals the seed trained alone except for
float32's rounding, because the order of summation differs. This is model ensembling of `torch.func`: `vmap` turns the
network's forward pass into grouped convolutions and batched matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from classifier.data.dataset import Split
from classifier.networks.model import Classifier
from classifier.params import TrainParams
from classifier.schema.train import LENET5
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from classifier.training.graph import Capture, GraphedSteps, cuda_graph
from classifier.training.loop import Report, run_epochs
from classifier.training.loss import losses
from classifier.training.mixing import Targets
from classifier.training.optimizer import gradients


def stackable(params: TrainParams) -> bool:
    """Whether a stack supports what `params` ask for: its models end together, and its kernels select no images.

    The only network is LeNet-5: buffers and random draws of others would differ from those of a seed trained alone.
    """
    plain = params.network == LENET5 and params.keep.weights == "last" and not params.keep.ema and params.clip is None
    fixed = params.augment.policy == "none" and params.data != "streamed" and not params.freeze
    return plain and fixed and not params.compile


def fit_together(
    classifiers: Mapping[int, Classifier],
    train: Split,
    validation: Split,
    params: TrainParams,
    device: torch.device,
    report: Report,
    checkpoints: Checkpoints | None = None,
    capture: Capture = cuda_graph,
) -> None:
    """`classifier.training.loop.fit` for the classifiers of several seeds; a DivergedError names the seed."""
    engine = VectorizedEngine(classifiers, params, device)
    run_epochs(GraphedSteps(engine, train, capture), validation, report, checkpoints)


class Stack(nn.Module):
    """K networks as one; its parameters are theirs with a leading dimension K, in the same memory."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = deepcopy(networks[0])
        for name, stacked in stack_module_state(list(networks))[0].items():
            self.network.get_parameter(name).data = stacked.detach()
            for network, values in zip(networks, stacked.detach(), strict=True):
                network.get_parameter(name).data = values

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images `(K, B, C, H, W)`, a batch for each -> logits `(K, B, classes)`."""

        def one(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.network, parameters, (batch,))
            return logits

        return vmap(one)(dict(self.network.named_parameters()), images)


class VectorizedEngine(Engine):
    """`Engine` of a stack: images `(K, B, C, H, W)`, labels `(K, B)`, and a loss for each model."""

    fast_layout = torch.contiguous_format  # channels_last is for tensors of four dimensions

    def __init__(self, classifiers: Mapping[int, Classifier], params: TrainParams, device: torch.device) -> None:
        """The classifiers are trained in place."""
        networks = [classifier.to(device).network for classifier in classifiers.values()]
        together = deepcopy(next(iter(classifiers.values())))  # its normalization is that of all
        together.network = Stack(networks)
        super().__init__(together, params, device, list(classifiers))
        self.diverged = torch.zeros(self.shape, device=device)

    def _loss(self, logits: Tensor, targets: Targets) -> Tensor:
        return losses(logits, targets, self.params.label_smoothing, self.class_weights).mean(-1)

    def _find_inf(self, loss: Tensor) -> None:
        everything = torch.cat([gradient.flatten(1) for gradient in gradients(self.parameters)], 1)
        norms = torch.linalg.vector_norm(everything, dim=1)
        torch.maximum(self.diverged, (loss + norms).isfinite().logical_not(), out=self.diverged)
        torch.amax(self.diverged, 0, out=self.found_inf)

    @torch.no_grad()
    def validate(self) -> Sequence[tuple[float | None, float | None]]:
        images, labels = self.held_out, self.held_out_labels
        if not len(labels):
            return super().validate()
        size = self._validation_batch()
        batches = (images[start : start + size] for start in range(0, len(images), size))
        logits = torch.cat([self.classifier(batch.expand(*self.shape, *batch.shape)) for batch in batches], 1)
        means = losses(logits, Targets(labels.expand(*self.shape, -1))).mean(-1)
        accuracies = (logits.argmax(-1) == labels).float().mean(1)
        return [*zip(means.tolist(), accuracies.tolist(), strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"sums/diverged": self.diverged}
