"""A batch in parts: each part is computed by one thread, and the parts' gradients are summed in one fixed tree.

The result depends on the number of parts, and not on how many processes share them. What a network draws at random or
keeps beside its parameters would belong to a part as well.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier import arithmetic
from classifier.params import TrainParams
from classifier.training.optimizer import gradients
from classifier.workers import Crew


@dataclass(frozen=True)
class Computation:
    """How a training is computed."""

    arithmetic: str  # portable or native (`classifier.arithmetic`)
    instructions: str  # of the CPU; empty on other devices
    parts: int  # of a batch
    processes: int  # that share the parts
    threads: int  # of each process

    def __str__(self) -> str:
        parts = f"{_count(self.parts, 'part')} in {_count(self.processes, 'process')}"
        return f"{self.arithmetic} arithmetic, {parts} of {_count(self.threads, 'thread')}"

    def recorded(self) -> dict[str, str]:
        """For the environment of a run."""
        named = {name: str(getattr(self, name)) for name in ("arithmetic", "instructions", "parts", "processes")}
        return {name: value for name, value in named.items() if value}

    def decisive(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What decides the bits of a training, of this and of its environment (`classifier.device.environment`)."""
        if self.arithmetic == "portable":
            names = {"device", "torch", "numpy"}
        else:
            names = environment.keys() - {"threads", "mlflow", "dvc"}
        own = {"arithmetic": self.arithmetic, "instructions": self.instructions, "parts": str(self.parts)}
        return {name: environment[name] for name in sorted(names)} | own | {"threads": str(self.threads)}


def computation_of(params: TrainParams, device: torch.device) -> Computation:
    """Raises UserError when `params` ask for portable arithmetic and this process computes otherwise."""
    if device.type != "cpu":
        parts = 1 if params.parts == "auto" else params.parts
        return Computation("native", "", parts, processes=1, threads=torch.get_num_threads())
    portable = params.arithmetic == "portable"
    if portable:
        arithmetic.verify()
    parts = 2 if params.parts == "auto" else params.parts
    return Computation(
        "portable" if portable and arithmetic.is_x86() else "native",
        arithmetic.instructions(),
        parts,
        # Elsewhere than on Linux, a process that is forked after torch has computed may crash.
        processes=min(parts, processes_of(params)) if sys.platform == "linux" else 1,
        threads=1 if portable or parts > 1 else torch.get_num_threads(),
    )


def processes_of(params: TrainParams) -> int:
    """How many processes compute at the same time on a CPU: as `params` say, or one per core."""
    # Torch's threads are the cores that it may use: it heeds OMP_NUM_THREADS, taskset and containers.
    return torch.get_num_threads() if params.processes == "auto" else params.processes


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}{'es' if name.endswith('s') else 's'}"


class Parts:
    """The losses and gradients of a batch's parts, of which each process of the crew computes its own."""

    def __init__(self, count: int, parameters: Mapping[str, Tensor], loss: Tensor, crew: Crew) -> None:
        """`loss` is like that of a part: a value per model."""
        self.count, self.parameters, self.crew = count, parameters, crew
        self.summed = [loss, *parameters.values()]
        self.turn = 0
        if count > 1:
            # Two sets in turn: while one process still reads a step's, another may write the next step's.
            values = sum(tensor.numel() for tensor in self.summed)
            shape = (2, count, values)
            self.rows = crew.share(*shape) if crew.size > 1 else torch.zeros(shape, device=loss.device)
            self.views = [[self._views(row) for row in rows] for rows in self.rows]

    def _views(self, row: Tensor) -> list[Tensor]:
        """A row of values as the loss and the gradients, each with the strides of its parameter."""
        views, start = [], row.storage_offset()
        for tensor in self.summed:
            views.append(row.as_strided(tensor.shape, tensor.stride(), start))
            start += tensor.numel()
        return views

    def of(self, batch: Tensor) -> list[tuple[int, Tensor]]:
        """This process's parts of a batch's images `(..., B)`, with their numbers; a small batch has fewer parts."""
        parts = batch.tensor_split(min(self.count, batch.shape[-1]), -1)
        return list(enumerate(parts))[self.crew.rank :: self.crew.size]

    def backward(self, number: int, loss: Tensor, share: float) -> None:
        """Compute the gradients of part `number`, whose mean loss counts for `share` of the batch's."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward(torch.full_like(loss, share))  # type: ignore[no-untyped-call]
        if self.count == 1:
            self.loss = loss.detach()
        else:
            values = [loss.detach() * share, *gradients(self.parameters)]
            torch._foreach_copy_(self.views[self.turn][number], values)

    def sum(self, size: int) -> Tensor:
        """The mean loss of a batch of `size` images; its gradients become those of the parameters."""
        if self.count == 1:
            return self.loss
        rows = self.rows[self.turn][: min(self.count, size)].unbind()
        self.crew.meet(rows)
        total = tree_sum(rows)
        self.turn = 1 - self.turn
        loss, *summed = self._views(total)
        for parameter, gradient in zip(self.parameters.values(), summed, strict=True):
            parameter.grad = gradient
        return loss


def tree_sum(values: Sequence[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ...: neighbours first, whoever computed them."""
    while len(values) > 1:
        pairs = [first + second for first, second in zip(values[::2], values[1::2], strict=False)]
        values = [*pairs, *values[2 * len(pairs) :]]
    return values[0]
