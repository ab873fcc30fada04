"""Processes that torchrun started together, on one machine or several: they share a training as forked ones do.

    torchrun --nproc-per-node 2 -m stages.train ARGUMENTS    (docs/equal-bits.md)

Each reads params, data and code of its own clone. Rank 0 is the stage; the others compute their parts of every batch
and write nothing. What they exchange goes through gloo or, where every process has a GPU of its own, through NCCL.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from classifier.errors import UserError
from classifier.project.processes import rank, world
from classifier.training.parts import Computation
from classifier.workers import PATIENCE_S, Crew

# Names in `classifier.training.checkpoint.deciding`; the machines themselves may differ.
COMPARED = (
    "params",
    "data",
    "pretrained",
    "code",
    "network",
    "arithmetic",
    "instructions",
    "parts",
    "device",
    "torch",
    "numpy",
)
RESUMES = "unless another rank says why, run again: training resumes from its last checkpoint"


def crew_of(computation: Computation, device: torch.device) -> Crew:
    """The processes that share a training: those that torchrun started, else forks of this one."""
    return Ranks.joined(device) if world() > 1 else Crew(computation.processes)


class Ranks(Crew):
    """`Crew` of processes that torchrun started. A process has one, because it can join the others only once."""

    def __init__(self, device: torch.device) -> None:
        self.size, self.rank, self.device = world(), rank(), device
        if self.rank:  # it holds no files, and ends with the first one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        local, here = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        own_gpu = False
        if device.type == "cuda":
            own_gpu = here <= torch.cuda.device_count()
            torch.cuda.set_device(local % torch.cuda.device_count())
        self.way = device if own_gpu else torch.device("cpu")  # of tensors that are exchanged
        with reported():
            dist.init_process_group("nccl" if own_gpu else "gloo", timeout=timedelta(seconds=PATIENCE_S))
        atexit.register(dist.destroy_process_group)  # before its threads are destroyed at random

    @classmethod
    @cache
    def joined(cls, device: torch.device) -> Ranks:
        """Returns when all processes have called this."""
        return cls(device)

    def agree(self, deciding: Mapping[str, str]) -> None:
        """Raises UserError in every process unless all agree on what determines the bits."""
        described = {name: deciding.get(name, "") for name in COMPARED}
        digests = [hashlib.sha256(value.encode()).digest() for value in described.values()]
        own = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(len(digests), -1)
        for number, found in enumerate(self._gather(own.to(self.way))):
            equal = (found == own.to(self.way)).all(1).tolist()
            other = [name for name, same in zip(described, equal, strict=True) if not same]
            if other:
                here = ", ".join(f"{name} {described[name]:.80}" for name in other)
                raise UserError(
                    f"rank {self.rank} on {socket.gethostname()} and rank {number} differ in {', '.join(other)} "
                    f"(here: {here}): give every machine the same commit, params.yaml, data and libraries"
                )

    def share(self, *shape: int) -> Tensor:
        """Zeros `shape`, float32, that `meet` makes equal everywhere."""
        return torch.zeros(shape, device=self.device)

    @contextmanager
    def working(self, work: Callable[[], None]) -> Iterator[None]:
        """Run `work` in every process but the first. The block that follows is for the first."""
        if self.rank:
            work()
        yield

    @torch.no_grad()
    def hand_out(self, numbers: Sequence[int], tensors: Iterable[Tensor]) -> Sequence[int]:
        given = torch.tensor(numbers)
        for tensor in (given, *tensors):
            sent = tensor.to(self.way, memory_format=torch.contiguous_format, copy=True)
            with reported():
                dist.broadcast(sent, 0)
            tensor.copy_(sent)
        found: list[int] = given.tolist()
        return found

    def meet(self, written: Sequence[Tensor] = ()) -> None:
        shares = [written[number :: self.size] for number in range(self.size)]
        longest = max(1, *(sum(tensor.numel() for tensor in share) for share in shares))
        sent = torch.zeros(longest, device=self.way)
        for place, tensor in zip(_split(sent, shares[self.rank]), shares[self.rank], strict=True):
            place.copy_(tensor)
        for number, found in enumerate(self._gather(sent)):
            if number != self.rank:
                for place, tensor in zip(_split(found, shares[number]), shares[number], strict=True):
                    tensor.copy_(place)

    def _gather(self, sent: Tensor) -> Iterable[Tensor]:
        """`sent` of every process, by rank."""
        found = sent.new_empty(self.size, *sent.shape)
        with reported():
            dist.all_gather(list(found.unbind()), sent)
        return found.unbind()


def _split(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The beginning of a row of values, as tensors with these shapes."""
    sizes = [tensor.numel() for tensor in like]
    parts = torch.split(values[: sum(sizes)], sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@contextmanager
def reported() -> Iterator[None]:
    """Convert what torch.distributed raises when another process has ended, or does not answer in time, to one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"rank {rank()} of {world()} lost the others, which ended or did not answer for {PATIENCE_S} s "
            f"({said:.200}); {RESUMES}"
        ) from None
