"""Shared by all contenders: timing, warm-up and output."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # the stages download and normalize do not need torch

BATCH = 100  # images
RATE, MOMENTUM = 0.001, 0.9
# Of the loops of general networks on a GPU.
GPU_BATCH, GPU_EPOCHS = 256, 5
BFLOAT16 = ("bfloat16", "compiled", "graphed")  # ways of the hand-written loop
WARM_UP = 5  # steps on a throwaway network: lazy imports and the first calls of every kernel


def loop_seconds(loop: Callable[[], None], device: torch.device) -> float:
    """Seconds until `loop` has returned and the device is idle."""
    wait(device)
    start = time.perf_counter()
    loop()
    wait(device)
    return time.perf_counter() - start


def device_seconds(loop: Callable[[], None], device: torch.device) -> float:
    """Like `loop_seconds`, but measured with device events on CUDA, which exclude host time before and after."""
    if device.type != "cuda":
        return loop_seconds(loop, device)
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    loop()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def say(**figures: object) -> None:
    """Print the figures as JSON; the parent process reads this last line."""
    print("\n" + json.dumps(figures), flush=True)
