"""Forked processes that share a computation with this process, and shared memory to exchange results."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from mmap import PAGESIZE, mmap
from multiprocessing import get_context

import torch
from torch import Tensor

from classifier.errors import UserError, lacks_memory

SPINS = 500  # attempts, about 0.1 ms, before a process sleeps until another arrives
PATIENCE_S = 300  # until a process that is alive but does not respond is considered hung
POLL_S = 0.1  # between checks whether the others are alive
PR_SET_PDEATHSIG = 1  # prctl(2)


class Crew:
    """This process, with rank 0, and the `size - 1` processes that share its work."""

    def __init__(self, size: int) -> None:
        self.size, self.rank = size, 0
        self.pids: dict[int, int] = {}  # by rank; known to rank 0 only
        self.last_words = mmap(-1, PAGESIZE)  # message of a process that ends with an error that the user can fix
        semaphore = get_context("fork").Semaphore
        # (a, b): arrivals of a that b has not seen yet. A semaphore also orders the memory that both use.
        self.arrivals = {(a, b): semaphore(0) for a in range(size) for b in range(size) if a != b}

    def share(self, *shape: int) -> Tensor:
        """A float32 tensor of zeros in shared memory, which all processes read and write. Call it before `working`."""
        memory = mmap(-1, max(1, prod(shape)) * 4)  # anonymous, because a container's /dev/shm may be small
        return torch.frombuffer(memory, dtype=torch.float32)[: prod(shape)].view(shape)

    @contextmanager
    def working(self, work: Callable[[], None]) -> Iterator[None]:
        """While the block runs, every other process runs `work`. None of them outlives the block."""
        try:
            for rank in range(1, self.size):
                with held_back(signal.SIGINT, signal.SIGTERM):
                    self.pids[rank] = self._fork(rank, work)
            yield
        finally:
            for pid in self.pids.values():
                os.kill(pid, signal.SIGKILL)
            for pid in self.pids.values():
                os.waitpid(pid, 0)
            self.pids.clear()

    def hand_out(self, numbers: Sequence[int], tensors: Iterable[Tensor]) -> Sequence[int]:
        """Give all processes rank 0's numbers and tensors. Call it before `working`: forked processes inherit them."""
        return numbers

    def meet(self, written: Sequence[Tensor] = ()) -> None:
        """A barrier: return when all processes have called this. Each then sees what the others wrote before.

        `written`: tensors made by `share`, or views of them, of which rank r wrote every `size`-th from number r on.
        Raises UserError in rank 0 if another process has ended or does not respond.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        for other in others:
            self.arrivals[self.rank, other].release()
        for other in others:
            self._wait_for(other)

    def _wait_for(self, other: int) -> None:
        arrival = self.arrivals[other, self.rank]
        for _ in range(SPINS):
            if arrival.acquire(block=False):
                return
        waited = 0.0  # counted, because a clock continues while the whole stage is suspended
        while not arrival.acquire(timeout=POLL_S):
            waited += POLL_S
            if self.rank == 0:
                self._check(waited)
            elif os.getppid() != self.parent:
                os._exit(1)

    def _check(self, waited: float) -> None:
        for rank, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.pids[rank]
                code = os.waitstatus_to_exitcode(status)
                kind, _, said = self.last_words[:].rstrip(b"\0").decode(errors="replace").partition(" ")
                if said:
                    raise MemoryError(said) if kind == "memory" else UserError(said)
                raise UserError(
                    f"a training process exited without reporting (exit status {code}; -9: killed, or out of memory); "
                    "run again: training resumes from its last checkpoint"
                )
        if waited >= PATIENCE_S:
            raise UserError(
                f"a training process has not answered for {PATIENCE_S} s and was stopped; "
                "run again: training resumes from its last checkpoint"
            )

    def _fork(self, rank: int, work: Callable[[], None]) -> int:
        self.parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns if there are other threads: `work` needs neither them nor their locks.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid
        try:
            self.rank, self.pids = rank, {}
            self._begin()
            work()
            os._exit(0)
        except (UserError, OSError) as error:
            self._say("error", error)
        except BaseException as error:
            if lacks_memory(error):
                self._say("memory", error)
            else:
                os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)

    def _say(self, kind: str, error: BaseException) -> None:
        words = f"{kind} {error or type(error).__name__}".encode()[:PAGESIZE]
        self.last_words[: len(words)] = words

    def _begin(self) -> None:
        """Set up a new process: it ends with rank 0, and only rank 0 handles signals and keeps files open."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(1)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


ALONE = Crew(1)


@contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Handle `signals` after the block. Python ignores exceptions of handlers while a process is forked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let operations of this process use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
