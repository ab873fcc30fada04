"""SGD and AdamW on PyTorch's fused kernels, one call for all parameters, and Muon. None updates where `found_inf` is 1.

`torch.optim` calls the same kernels with the same results to the bit, but its first optimizer imports `torch._dynamo`,
which takes over a second. State starts as zeros, so that the first step is like every other and can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from classifier.params import TrainParams


class Optimizer(Protocol):
    def step(self, rate: float | Tensor) -> None:
        """Update the parameters by their gradients; `rate` is the learning rate, a tensor where it lies on a device."""

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/momentum_buffer` and the like: the tensors themselves, not copies."""


def make_optimizer(
    parameters: Mapping[str, Tensor], params: TrainParams, found_inf: Tensor | None, stacked: int = 0
) -> Optimizer:
    """As `params.optimizer` says; `found_inf` is a float scalar beside the parameters, or None where kernels take none.

    The first `stacked` dimensions of the parameters count models, each of which is updated as if it were alone.
    """
    if params.optimizer == "muon":
        return Muon(parameters, params, found_inf, stacked)
    return AdamW(parameters, params, found_inf) if params.optimizer == "adamw" else SGD(parameters, params, found_inf)


def gradients(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Of all parameters, in their order."""
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


class SGD:
    """`torch.optim.SGD(fused=True)`: Sutskever et al. 2013 with the learning rate outside of the momentum."""

    def __init__(self, parameters: Mapping[str, Tensor], params: TrainParams, found_inf: Tensor | None) -> None:
        self.parameters, self.params, self.found_inf = parameters, params, found_inf
        moving = params.momentum > 0
        self.buffers = {name: torch.zeros_like(value) for name, value in parameters.items() if moving}

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        torch._fused_sgd_(
            list(self.parameters.values()),
            gradients(self.parameters),
            list(self.buffers.values()),
            lr=rate,
            momentum=self.params.momentum,
            dampening=0.0,
            nesterov=self.params.nesterov,
            weight_decay=self.params.weight_decay,
            maximize=False,
            is_first_step=False,
            found_inf=self.found_inf,
        )

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/momentum_buffer": buffer for name, buffer in self.buffers.items()}


class AdamW:
    """`torch.optim.AdamW(fused=True)` with PyTorch's betas and epsilon: Loshchilov and Hutter 2019."""

    def __init__(self, parameters: Mapping[str, Tensor], params: TrainParams, found_inf: Tensor | None) -> None:
        self.parameters, self.params, self.found_inf = parameters, params, found_inf
        self.means = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.steps = torch.zeros((), device=next(iter(parameters.values())).device)  # updates made

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        self.steps += 1
        torch._fused_adamw_(
            list(self.parameters.values()),
            gradients(self.parameters),
            list(self.means.values()),
            list(self.squares.values()),
            [],
            [self.steps] * len(self.parameters),
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=self.params.weight_decay,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            self.steps -= self.found_inf

    def state(self) -> dict[str, Tensor]:
        means = {f"{name}/exp_avg": mean for name, mean in self.means.items()}
        squares = {f"{name}/exp_avg_sq": square for name, square in self.squares.items()}
        return means | squares | {"step": self.steps}


class Muon:
    """Momentum made orthogonal, for matrices and convolutions; AdamW for biases: Jordan et al. 2024, "Muon".

    All directions of a layer's update have about the same length, so that a net learns from few steps. The update's
    root mean square is that of AdamW's, so that its learning rates fit both: Liu et al. 2025, "Muon is scalable for LLM
    training", equation 4. `torch.optim.Muon` takes neither convolutions nor `found_inf`, and rounds to bfloat16.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], params: TrainParams, found_inf: Tensor | None, stacked: int = 0
    ) -> None:
        self.params, self.found_inf, self.stacked = params, found_inf, stacked
        self.weights = {name: value for name, value in parameters.items() if value.ndim - stacked > 1}
        biases = {name: value for name, value in parameters.items() if name not in self.weights}
        self.adamw = AdamW(biases, params, found_inf)
        self.buffers = {name: torch.zeros_like(value) for name, value in self.weights.items()}

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        self.adamw.step(rate)
        momentum = self.params.momentum
        for name, gradient in zip(self.weights, gradients(self.weights), strict=True):
            weights, buffer = self.weights[name], self.buffers[name]
            moving = buffer.lerp(gradient, 1 - momentum)
            direction = gradient.lerp(moving, momentum) if self.params.nesterov else moving
            matrices = direction.flatten(self.stacked + 1)  # (..., outputs, inputs)
            change = 0.2 * sqrt(max(matrices.shape[-2:])) * orthogonal(matrices).reshape(weights.shape)
            self._set(buffer, moving)
            self._set(weights, weights - rate * (change + self.params.weight_decay * weights))

    def _set(self, tensor: Tensor, value: Tensor) -> None:
        tensor.copy_(value if self.found_inf is None else torch.where(self.found_inf > 0, tensor, value))

    def state(self) -> dict[str, Tensor]:
        return {f"{name}/momentum_buffer": buffer for name, buffer in self.buffers.items()} | self.adamw.state()


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly `U V^T` of `U S V^T` for matrices `(..., M, N)`: singular values become 0.7 to 1.2, the smallest less.

    Three steps of Newton and Schulz's iteration, with the coefficients of Jordan et al. 2024; five train no better.
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x: Tensor = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(3):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if wide is not matrices else x
