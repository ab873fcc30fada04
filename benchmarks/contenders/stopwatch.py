"""What all contenders share: the same clock, the same warm-up, the same way to report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # the stages download and normalize do without

BATCH = 100  # images
RATE, MOMENTUM = 0.001, 0.9
WARM_UP = 5  # steps on a throwaway net: lazy imports and the first calls of every kernel


def loop_seconds(loop: Callable[[], None], device: torch.device) -> float:
    """Seconds until `loop` has returned and the device has done its work."""
    wait(device)
    start = time.perf_counter()
    loop()
    wait(device)
    return time.perf_counter() - start


def device_seconds(loop: Callable[[], None], device: torch.device) -> float:
    """As `loop_seconds`, by events on the device where it has them: without what the host does before and after."""
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
    """The line that the parent process reads; it is the last one."""
    print("\n" + json.dumps(figures), flush=True)
