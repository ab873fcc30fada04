"""A batch in parts: each part is computed by one thread, and the parts' gradients are summed in one fixed tree.

The result depends on the number of parts, and not on how many processes share them. What a network draws at random
(`classifier.training.engine`) and keeps beside its parameters (`classifier.training.buffers`) belongs to a part too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier import arithmetic
from classifier.errors import UserError
from classifier.params import TrainParams
from classifier.project.processes import world
from classifier.training.buffers import Buffers, as_bytes_of, words
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
        """What determines the bits of a training, from this and its environment (`classifier.device.environment`)."""
        if self.arithmetic == "portable":
            names = {"device", "torch", "numpy"}
        else:
            names = environment.keys() - {"threads", "mlflow", "dvc"}
        own = {"arithmetic": self.arithmetic, "instructions": self.instructions, "parts": str(self.parts)}
        return {name: environment[name] for name in sorted(names)} | own | {"threads": str(self.threads)}


def computation_of(params: TrainParams, device: torch.device) -> Computation:
    """Raises UserError when `params` ask for portable arithmetic and this process computes otherwise."""
    parts = params.parts if params.parts != "auto" else 2 if device.type == "cpu" else 1
    if world() > parts:
        raise UserError(
            f"torchrun started {world()} processes for {_count(parts, 'part')} of a batch: start at most {parts}, "
            f"or set train.parts to {world()} or more, which changes the results"
        )
    if device.type != "cpu":
        return Computation("native", "", parts, processes=world(), threads=torch.get_num_threads())
    portable = params.arithmetic == "portable"
    if portable:
        arithmetic.verify()
    return Computation(
        "portable" if portable and arithmetic.is_x86() else "native",
        arithmetic.instructions(),
        parts,
        processes=_processes(params, parts),
        threads=1 if portable or parts > 1 else torch.get_num_threads(),
    )


def _processes(params: TrainParams, parts: int) -> int:
    if world() > 1:
        return world()
    # Outside Linux, a process that is forked after torch has computed may crash.
    return min(parts, processes_of(params)) if sys.platform == "linux" else 1


def processes_of(params: TrainParams) -> int:
    """How many processes compute at the same time on a CPU: as `params` say, or one per core."""
    # torch has a thread per core that it may use: it respects OMP_NUM_THREADS, taskset and containers.
    return torch.get_num_threads() if params.processes == "auto" else params.processes


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}{'es' if name.endswith('s') else 's'}"


class Parts:
    """The losses, gradients and buffers of a batch's parts, of which each process of the crew computes its own."""

    def __init__(
        self, count: int, parameters: Mapping[str, Tensor], buffers: Buffers, loss: Tensor, crew: Crew
    ) -> None:
        """`loss`: a tensor like the loss of a part, a value per model."""
        self.count, self.parameters, self.buffers, self.crew = count, parameters, buffers, crew
        self.like, self.turn = loss, 0
        # Processes use two sets in turn: one process may still read a step while another writes the next.
        self.sets = 2 if crew.size > 1 else 1
        if count > 1:
            values = sum(tensor.numel() for tensor in (loss, *parameters.values(), *buffers.averaged))
            self.aligned = -(-values // 4) * 4
            shape = (self.sets, count, self.aligned + sum(map(words, buffers.taken)))
            self.rows = crew.share(*shape) if crew.size > 1 else torch.zeros(shape, device=loss.device)
            self.taken = [self._taken(rows[0]) for rows in self.rows]
        self.lay_out()

    def lay_out(self) -> None:
        """Lay out the gradients of the parameters that are not frozen. Call it when these change."""
        self.learning = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        self.summed = [self.like, *self.learning, *self.buffers.averaged]
        self.values = sum(tensor.numel() for tensor in self.summed)
        if self.count > 1:
            self.views = [[self._views(row) for row in rows] for rows in self.rows]

    def _taken(self, row: Tensor) -> list[Tensor]:
        """The rest of a row, which is not summed, as the buffers that are taken from the first part."""
        buffers = self.buffers.taken
        places = torch.split(row[self.aligned :], [words(buffer) for buffer in buffers])
        return [as_bytes_of(place, buffer) for place, buffer in zip(places, buffers, strict=True)]

    def _views(self, row: Tensor) -> list[Tensor]:
        """A row of values as the loss, gradients and changes of buffers, each with the strides of its tensor."""
        views, start = [], row.storage_offset()
        for tensor in self.summed:
            views.append(row.as_strided(tensor.shape, tensor.stride(), start))
            start += tensor.numel()
        return views

    def of(self, batch: Tensor) -> list[tuple[int, Tensor]]:
        """This process's parts of a batch's images `(..., B)`, with their numbers."""
        return list(enumerate(split(batch, self.count)))[self.crew.rank :: self.crew.size]

    def begin(self) -> None:
        """Call before the forward pass of a part."""
        if self.count > 1:
            self.buffers.begin()

    def backward(self, number: int, loss: Tensor, share: float) -> None:
        """Compute the gradients of part `number`, whose mean loss counts for `share` of the batch's."""
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward(torch.full_like(loss, share))  # type: ignore[no-untyped-call]
        for parameter in self.learning:
            if parameter.grad is None:  # the forward pass did not use it
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            self.loss = loss.detach()
        else:
            values = [loss.detach() * share, *gradients(self.parameters), *self.buffers.changes(share)]
            torch._foreach_copy_(self.views[self.turn][number], values)
            if number == 0 and self.buffers.taken:
                torch._foreach_copy_(self.taken[self.turn], self.buffers.taken)

    def sum(self, size: int) -> Tensor:
        """The mean loss of a batch of `size` images; its gradients and buffers become those of the network."""
        if self.count == 1:
            return self.loss
        rows = self.rows[self.turn][: parts_of(size, self.count)]
        self.crew.meet(rows.unbind())
        total = tree_sum(rows[:, : self.values].unbind())
        if len(rows) == 1:  # processes share this row, and gradients may be changed in place
            total = total.clone()
        loss, *summed = self._views(total)
        for parameter, gradient in zip(self.learning, summed, strict=False):
            parameter.grad = gradient
        self.buffers.end(summed[len(self.learning) :], self.taken[self.turn])
        self.turn = (self.turn + 1) % self.sets
        return loss


def split(batch: Tensor, count: int) -> Sequence[Tensor]:
    """A batch's images `(..., B)` in at most `count` parts."""
    return batch.tensor_split(parts_of(batch.shape[-1], count), -1)


def parts_of(size: int, count: int) -> int:
    """A small batch has fewer parts, of at least two images, because batch normalization needs two values."""
    return min(count, max(1, size // 2))


def tree_sum(values: Sequence[Tensor]) -> Tensor:
    """((0 + 1) + (2 + 3)) + ...: neighbours first, whoever computed them."""
    while len(values) > 1:
        pairs = [first + second for first, second in zip(values[::2], values[1::2], strict=False)]
        values = [*pairs, *values[2 * len(pairs) :]]
    return values[0]
