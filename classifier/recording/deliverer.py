"""Ensures that one process at a time uploads a project's journals to MLflow, and shows its progress to the others.

The lock is `.pipeline/delivery/lock`. Its owner updates the lock's modification time whenever it has read files or
computed, so that others can distinguish a long upload from a store that does not respond.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from classifier.project.lineage import project_root
from classifier.project.ownership import LOCK, claim, owner_of, release

DELIVERY = Path(".pipeline/delivery")  # in the project's root
PATIENCE_S = 60.0  # without progress, after which other processes stop waiting
BEAT_S = 5.0  # between checks of this process's progress; progress is at least:
BYTES, CPU_S = 65536, 0.1  # bytes read or seconds computed


class Progress:
    """The delivering process's progress, as seen by another process."""

    def __init__(self) -> None:
        self.seen = self._time()
        self.since = time.monotonic()

    def stalled_s(self) -> float:
        """Seconds since the last observed progress."""
        if (now := self._time()) != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since

    def _time(self) -> int:
        try:
            return (project_root() / DELIVERY / LOCK).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


@contextmanager
def delivering() -> Iterator[None]:
    """Deliver exclusively for the project during the block.

    Waits for another delivering process while it makes progress. Raises OSError, naming that process, if it does not.
    """
    folder, progress = project_root() / DELIVERY, Progress()
    while (handle := claim(folder)) is None:
        if progress.stalled_s() > PATIENCE_S:
            host, _, rest = owner_of(folder).partition(":")
            number = rest.partition(":")[0]
            raise OSError(
                f"process {number} on {host} is uploading to MLflow and has made no progress for {PATIENCE_S:g} s: "
                f"kill {number}, then classifier sync"
            )
        time.sleep(0.05)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(folder / LOCK, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        release(handle)


def _beat(lock: Path, done: threading.Event) -> None:
    read, computed = _work()
    while not done.wait(BEAT_S):
        before = read, computed  # per interval, because system metrics read and compute a little all the time
        read, computed = _work()
        if read - before[0] >= BYTES or computed - before[1] >= CPU_S:
            with suppress(OSError):
                os.utime(lock)


def _work() -> tuple[int, float]:
    """Bytes that this process has read, if the system counts them, and its CPU seconds."""
    read, times = 0, os.times()
    with suppress(psutil.Error, AttributeError, OSError):  # where they may not be read, or do not exist
        read = psutil.Process().io_counters().read_chars
    return read, times.user + times.system
