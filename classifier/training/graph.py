"""The whole step as a CUDA graph: one call launches its dozens of kernels, whose launch one by one outlasts their run.

The host copies an epoch's order, augmentation and learning rates to the device at once, then only each batch's number.
A smaller last batch does not have the graph's shapes: its kernels are launched one by one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from classifier.data.dataset import Split
from classifier.training.augmentation import Draws
from classifier.training.engine import Engine
from classifier.training.steps import Steps, StreamedSteps

Capture = Callable[[Callable[[], None]], Callable[[], None]]
WARM_UP = 3  # steps before the capture, in which libraries allocate their workspaces
TIMED = 10  # replays


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Run `step` WARM_UP times, capture it, and return its replay. Each time it must use the same tensors."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # On the same stream, because autograd remembers the stream of nodes that are still alive.
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


def captured(capture: Capture, step: Callable[[], None]) -> Callable[[], None]:
    """The replay of `step`, or `step` itself, with a line that says why, if it cannot be captured."""
    try:
        return capture(step)
    except RuntimeError as error:
        cause = error.__context__ or error  # the end of a failed capture raises an error of its own
        reason = str(cause).strip().partition("\n")[0]
        print(f"no CUDA graph, kernels are launched one by one: {reason}", file=sys.stderr)
        return step


def milliseconds(replay: Callable[[], None]) -> float:
    """Time of a replay on the GPU, the mean of TIMED after a first one."""
    replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(TIMED):
        replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / TIMED * 1000


class GraphedSteps(Steps):
    """`Steps` that replays full batches; everything that they read is in tensors on the device.

    For a stack of models, all plans have a leading dimension K.
    """

    def __init__(self, engine: Engine, train: Split, capture: Capture = cuda_graph) -> None:
        super().__init__(engine, train)
        device, shape = engine.device, engine.shape
        order, draws = self._plan(seed=0, epoch=1)  # all plans have these shapes
        self.order = torch.zeros(*shape, *order.shape, dtype=order.dtype, device=device)
        self.draws = {
            name: torch.zeros(*shape, *values.shape, dtype=values.dtype, device=device)
            for name, values in draws.items()
        }
        # CUDA's fused optimizers read a float32, the CPU's a float64.
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self.device_rates = torch.zeros(self.per_epoch, dtype=precision, device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)  # of the batch
        self.in_batch = torch.arange(self.params.batch_size, device=device)  # places
        self.full, self.rest = divmod(len(train), self.params.batch_size)
        self.replay = self._captured(capture)
        self.planner = ThreadPoolExecutor(1)
        self._plan_ahead(1)

    def _captured(self, capture: Capture) -> Callable[[], None]:
        def full_batch() -> None:
            self._update(self.params.batch_size)

        if not self.full:
            return full_batch
        before = self.engine.state()
        replay = captured(capture, full_batch)
        if self.engine.compiles:
            plain = milliseconds(replay)
            failed = replay is full_batch
            del replay  # and the memory of its tensors
            self.engine.compile()  # at the first step of the warm-up
            replay = full_batch if failed else captured(capture, full_batch)
            print(f"a step takes {milliseconds(replay):.2f} ms, {plain:.2f} ms without train.compile", file=sys.stderr)
        self.engine.load(before)
        return replay

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.engine.begin_epoch(epoch)
        if self.planned_epoch != epoch:  # training resumes from a checkpoint
            self._plan_ahead(epoch)
        self.rates, rates, order, draws = self.plan.result()
        self.device_rates.copy_(rates)
        self.order_on_host = order.view_as(self.order)
        self.order.copy_(self.order_on_host)
        for name, values in draws.items():
            self.draws[name].copy_(values.view_as(self.draws[name]))
        if epoch < self.params.epochs:
            self._plan_ahead(epoch + 1)

    def _plan_ahead(self, epoch: int) -> None:
        """Plan an epoch while the device is busy: for 64 models, it takes as long as some of its steps."""
        self.planned_epoch, self.plan = epoch, self.planner.submit(self._plans, epoch)

    def _plans(self, epoch: int) -> tuple[list[float], Tensor, Tensor, Draws]:
        """Learning rates for the history; then, for the device, the same rates, and orders and draws of all models."""
        plans = [self._plan(seed, epoch) for seed in self.engine.seeds]
        rates, names = self._rates(epoch), plans[0][1]
        draws = {name: torch.stack([of_model[name] for _, of_model in plans]) for name in names}
        return rates, torch.tensor(rates, dtype=torch.float64), torch.stack([order for order, _ in plans]), draws

    def step(self, batch: int) -> None:
        self.engine.begin_step(self.epoch, batch)
        self.number.fill_(batch)
        if batch < self.full:
            self.replay()
        else:
            self._update(self.rest)
        self.engine.steps += 1

    def _update(self, count: int) -> None:
        """Update on `count` images of the batch with the number in `self.number`, which the host does not read."""
        places = self.number * self.params.batch_size + self.in_batch[:count]
        self.engine.update(self._parts(places), count, self.device_rates[self.number].squeeze())


class StreamedGraph(StreamedSteps, GraphedSteps):
    """`GraphedSteps` on images that stay in their files: each batch is copied to where the graph reads it.

    Threads read the coming batches and copy them to the device meanwhile. A batch has one part.
    """

    def _hold(self, train: Split) -> None:
        super()._hold(train)
        shape = (self.params.batch_size, *self.shape)
        self.images = torch.zeros(shape, dtype=torch.uint8, device=self.engine.device)

    def _ask(self, batch: int) -> None:
        super()._ask(batch)
        images = self.read_ahead.next()
        self.images[: len(images)].copy_(images)

    def _take(self, picked: Tensor) -> Tensor:
        return self.images[: len(picked)]
