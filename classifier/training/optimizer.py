"""SGD and AdamW on PyTorch's fused kernels, a call per learning rate, and Muon. None updates if `found_inf` is 1.

`torch.optim` calls the same kernels with the same results to the bit, but its first optimizer imports `torch._dynamo`,
which takes over a second. State starts as zeros, so that the first step is like every other and can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from classifier.params import TrainParams


class Optimizer(Protocol):
    def step(self, rate: float | Tensor) -> None:
        """Update the parameters by their gradients; `rate` is the learning rate, a tensor if it is on a device."""

    def state(self) -> dict[str, Tensor]:
        """`<parameter>/momentum_buffer` and the like: the tensors themselves, not copies."""


def make_optimizer(
    parameters: Mapping[str, Tensor], params: TrainParams, found_inf: Tensor | None, stacked: int = 0
) -> Optimizer:
    """The optimizer `params.optimizer`; `found_inf`: a float scalar on the same device, or None if kernels take none.

    The first `stacked` dimensions of the parameters count models, each of which is updated as if it were alone.
    """
    groups = _Groups(parameters, params.layer_decay)
    if params.optimizer == "muon":
        return Muon(groups, params, found_inf, stacked)
    return AdamW(groups, params, found_inf) if params.optimizer == "adamw" else SGD(groups, params, found_inf)


def gradients(parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The gradients of all parameters that have one, in their order; frozen parameters have none."""
    return [parameter.grad for parameter in parameters.values() if parameter.grad is not None]


def layer_factors(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Factors of the learning rate: 1 for the last layer, `layer_decay` for the first, in between geometric by depth.

    Howard and Ruder 2018, "Universal language model fine-tuning for text classification", section 3.2. A layer is a
    module that has parameters, in the order of the network.
    """
    layer_of = {name: name.rpartition(".")[0] for name in names}
    depths = {layer: depth for depth, layer in enumerate(dict.fromkeys(layer_of.values()))}
    last = max(len(depths) - 1, 1)
    return {name: layer_decay ** (1 - depths[layer] / last) for name, layer in layer_of.items()}


class _Groups:
    """Parameters by the factor of their learning rate. A step updates those that have a gradient."""

    def __init__(self, parameters: Mapping[str, Tensor], layer_decay: float) -> None:
        self.parameters = parameters
        self.factors: dict[float, list[str]] = {}
        for name, factor in layer_factors(parameters, layer_decay).items():
            self.factors.setdefault(factor, []).append(name)

    def only(self, keep: Callable[[Tensor], bool]) -> _Groups:
        """The groups of some parameters, with their factors among all parameters."""
        some = copy(self)
        some.parameters = {name: value for name, value in self.parameters.items() if keep(value)}
        named = {factor: [name for name in names if name in some.parameters] for factor, names in self.factors.items()}
        some.factors = {factor: names for factor, names in named.items() if names}
        return some

    def of(self, rate: float | Tensor) -> Iterator[tuple[float | Tensor, list[str], list[Tensor], list[Tensor]]]:
        """Each group's learning rate, and the names, values and gradients of its parameters."""
        for factor, names in self.factors.items():
            ready = [name for name in names if self.parameters[name].grad is not None]
            found = {name: self.parameters[name] for name in ready}
            if found:
                yield rate if factor == 1 else rate * factor, ready, list(found.values()), gradients(found)


class SGD:
    """`torch.optim.SGD(fused=True)`: Sutskever et al. 2013 with the learning rate outside the momentum."""

    def __init__(self, groups: _Groups, params: TrainParams, found_inf: Tensor | None) -> None:
        self.groups, self.parameters, self.params, self.found_inf = groups, groups.parameters, params, found_inf
        moving = params.momentum > 0
        self.buffers = {name: torch.zeros_like(value) for name, value in self.parameters.items() if moving}

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        for group_rate, names, values, grads in self.groups.of(rate):
            torch._fused_sgd_(
                values,
                grads,
                [self.buffers[name] for name in names if self.buffers],
                lr=group_rate,
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

    def __init__(self, groups: _Groups, params: TrainParams, found_inf: Tensor | None) -> None:
        self.groups, self.parameters, self.params, self.found_inf = groups, groups.parameters, params, found_inf
        self.means = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        # Updates made, of each parameter.
        self.steps = {name: torch.zeros((), device=value.device) for name, value in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        for group_rate, names, values, grads in self.groups.of(rate):
            steps = [self.steps[name] for name in names]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                values,
                grads,
                [self.means[name] for name in names],
                [self.squares[name] for name in names],
                [],
                steps,
                lr=group_rate,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                weight_decay=self.params.weight_decay,
                amsgrad=False,
                maximize=False,
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    def state(self) -> dict[str, Tensor]:
        means = {f"{name}/exp_avg": mean for name, mean in self.means.items()}
        squares = {f"{name}/exp_avg_sq": square for name, square in self.squares.items()}
        return means | squares | {f"{name}/step": steps for name, steps in self.steps.items()}


class Muon:
    """Momentum made orthogonal, for matrices and convolutions; AdamW for biases: Jordan et al. 2024, "Muon".

    All directions of a layer's update have about the same length, so that a network learns in few steps. The update has
    the root mean square of AdamW's, so that both take the same learning rates: Liu et al. 2025, "Muon is scalable for
    LLM training", equation 4. `torch.optim.Muon` takes neither convolutions nor `found_inf`, and rounds to bfloat16.
    """

    def __init__(self, groups: _Groups, params: TrainParams, found_inf: Tensor | None, stacked: int = 0) -> None:
        self.params, self.found_inf, self.stacked = params, found_inf, stacked
        self.adamw = AdamW(groups.only(lambda value: value.ndim - stacked <= 1), params, found_inf)
        self.groups = groups.only(lambda value: value.ndim - stacked > 1)
        self.buffers = {name: torch.zeros_like(value) for name, value in self.groups.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> None:
        self.adamw.step(rate)
        for group_rate, names, *_ in self.groups.of(rate):
            for name in names:
                self._update(name, group_rate)

    def _update(self, name: str, rate: float | Tensor) -> None:
        weights, buffer, momentum = self.groups.parameters[name], self.buffers[name], self.params.momentum
        assert weights.grad is not None
        moving = buffer.lerp(weights.grad, 1 - momentum)
        direction = weights.grad.lerp(moving, momentum) if self.params.nesterov else moving
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
