"""The whole step as a CUDA graph: one call launches its dozens of kernels, which one by one take longer than they run.

The host hands over an epoch's order, augmentation and learning rates at once, and then only the number of the batch.
A last, smaller batch has other shapes than the graph: its kernels are launched one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import cos, radians, sin

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from classifier.data.dataset import SIZE, Split
from classifier.params import AugmentParams
from classifier.training.augmentation import Augmentation
from classifier.training.engine import Engine, Part
from classifier.training.steps import Steps, plan_epoch

Capture = Callable[[Callable[[], None]], Callable[[], None]]
WARM_UP = 3  # steps before the capture, in which libraries take their workspaces


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """What replays `step`, which reads and writes tensors that stay where they are; it is run a few times before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class GraphedSteps(Steps):
    """`Steps` whose full batches are replayed; all that they read lies in tensors on the device.

    Of a stack of models all plans have a leading dimension K.
    """

    def __init__(self, engine: Engine, train: Split, capture: Capture = cuda_graph) -> None:
        super().__init__(engine, train)
        device, shape = engine.device, engine.shape
        self.augmented = DeviceAugmentation(self.images, self.params.augment)
        self.order = torch.zeros(*shape, len(train), dtype=torch.int64, device=device)
        self.draws = self.augmented.no_draws(*shape, self.per_epoch)
        # CUDA's fused optimizers read a float32, the CPU's a float64.
        precision = torch.float64 if device.type == "cpu" else torch.float32
        self.device_rates = torch.zeros(self.per_epoch, dtype=precision, device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)  # of the batch
        self.places = torch.arange(self.params.batch_size, device=device)  # in a batch
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
        try:
            replay = capture(full_batch)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            print(f"no CUDA graph, kernels are launched one by one: {reason}", file=sys.stderr)
            replay = full_batch
        self.engine.load(before)
        return replay

    def begin_epoch(self, epoch: int) -> None:
        if self.planned_epoch != epoch:  # training goes on from a checkpoint
            self._plan_ahead(epoch)
        self.rates, *plan = self.plan.result()
        for static, values in zip((self.device_rates, self.order, self.draws), plan, strict=True):
            static.copy_(values.view_as(static))
        if epoch < self.params.epochs:
            self._plan_ahead(epoch + 1)

    def _plan_ahead(self, epoch: int) -> None:
        """While the device is busy: of 64 models an epoch's orders take as long as some of its steps."""
        self.planned_epoch, self.plan = epoch, self.planner.submit(self._plan, epoch)

    def _plan(self, epoch: int) -> tuple[list[float], Tensor, Tensor, Tensor]:
        """Learning rates for the history, and then, for the device, the same, orders and draws."""
        plans = [plan_epoch(len(self.labels), epoch, seed, self.params) for seed in self.engine.seeds]
        rates, draws = self._rates(epoch), [self.augmented.draws(augment) for _, augment in plans]
        return rates, torch.tensor(rates, dtype=torch.float64), torch.stack([o for o, _ in plans]), torch.stack(draws)

    def step(self, batch: int) -> None:
        self.number.fill_(batch)
        if batch < self.full:
            self.replay()
        else:
            self._update(self.rest)
        self.engine.steps += 1

    def _update(self, count: int) -> None:
        """On the `count` images of the batch that `number` says; the host need not know which."""
        self.engine.update(self._parts_of(count), count, self.device_rates[self.number].squeeze())

    def _parts_of(self, count: int) -> Iterator[Part]:
        for number, places in self.engine.parts.of(self.places[:count]):
            picked = self.order[..., self.number * self.params.batch_size + places]
            yield number, self.augmented(picked, self.draws[..., self.number, :]), self.labels[picked]


class DeviceAugmentation:
    """`Augmentation`'s pixels, to the bit, from draws that lie on the device."""

    def __init__(self, images: Tensor, params: AugmentParams) -> None:
        """`images` are all of them, `(N, C, 32, 32) uint8`."""
        self.affine = params.rotation > 0 or params.scale > 0
        self.margin = 0 if self.affine else params.shift  # a shift is a window of the image with a margin of zeros
        self.images = pad(images, [self.margin] * 4)
        pixels = torch.arange(SIZE, device=images.device)
        self.channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
        self.rows, self.columns = pixels[:, None], pixels
        y, x = torch.meshgrid(pixels - (SIZE - 1) / 2, pixels - (SIZE - 1) / 2, indexing="ij")  # from the centre
        self.grid = torch.stack([x, y, torch.ones_like(x)], -1).view(1, SIZE * SIZE, 3)

    def no_draws(self, *shape: int) -> Tensor:
        """Room for the draws of so many batches."""
        kind = (6, torch.float32) if self.affine else (2, torch.int64)
        return torch.zeros(*shape, kind[0], dtype=kind[1], device=self.images.device)

    def draws(self, augmentation: Augmentation) -> Tensor:
        """Of an epoch's batches: shifts down and to the right `(batches, 2)`, or affine matrices `(batches, 6)`."""
        if not self.affine:
            return torch.tensor(augmentation.shifts)
        draws = zip(augmentation.shifts, augmentation.angles, augmentation.scales, strict=True)
        matrices = [inverse_affine(*shift, angle, scale) for shift, angle, scale in draws]
        return torch.tensor(matrices, dtype=torch.float32)

    def __call__(self, picked: Tensor, draw: Tensor) -> Tensor:
        """Images `(..., B, C, 32, 32) uint8` of those `picked (..., B)`, moved by their batch's `draw (..., 1, D)`."""
        picked = picked[..., None, None, None]
        if self.affine:
            return self._warped(self.images[picked, self.channels, self.rows, self.columns], draw)
        dy, dx = (self.margin - draw[..., None, None, None]).unbind(-4)
        return self.images[picked, self.channels, self.rows + dy, self.columns + dx]

    def _warped(self, images: Tensor, draw: Tensor) -> Tensor:
        """The arithmetic of torchvision's `affine`."""
        matrices = draw.reshape(-1, 2, 3).mT / (SIZE / 2)
        grid = self.grid.expand(len(matrices), -1, -1).bmm(matrices).view(-1, 1, SIZE, SIZE, 2)
        pixels = images.reshape(len(matrices), -1, *images.shape[-3:]).float()  # (K, B, C, 32, 32)
        grids = grid.expand(-1, pixels.shape[1], -1, -1, -1).flatten(0, 1)
        moved = grid_sample(pixels.flatten(0, 1), grids, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved.round().to(images.dtype).view_as(images)


def inverse_affine(dy: int, dx: int, angle: float, scale: float) -> list[float]:
    """Rows of the 2 x 3 matrix that takes a moved pixel back, in pixels from the centre; `angle` in degrees."""
    a, b = cos(radians(angle)) / scale, sin(radians(angle)) / scale
    return [a, b, -a * dx - b * dy, -b, a, b * dx - a * dy]
