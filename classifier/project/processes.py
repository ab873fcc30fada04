"""Ending processes: they are asked first, so that a stage can record how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

ENDING_S = 20  # for a stage to record how it ended


def end_processes(living: Callable[[], Iterable[psutil.Process]]) -> None:
    """Terminate the processes that `living` lists; kill those that it still lists after ENDING_S."""
    for process in living():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + ENDING_S
    while (left := list(living())) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
