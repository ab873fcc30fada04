"""Processes: rank and world size under torchrun, and ending other processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import connection, parent_process

import psutil

ENDING_S = 20  # for a stage to record how it ended


def world() -> int:
    """World size: the number of processes that torchrun started, this one included; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's rank; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def follow_parent() -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit with the parent. Worker processes call it first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent, "this process was started by another"
    connection.wait([parent.sentinel])
    os._exit(1)


def end_processes(living: Callable[[], Iterable[psutil.Process]]) -> None:
    """Terminate the processes that `living` lists; kill those that it still lists after ENDING_S.

    SIGTERM comes first, so that a stage can record how it ended.
    """
    for process in living():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + ENDING_S
    while (left := list(living())) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
