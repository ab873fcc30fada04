"""One process at a time delivers a project's journals to MLflow, in their order; the others see whether it progresses.

The lock is `.pipeline/delivery/lock`. While a process holds it, the lock's time of modification moves on whenever that
process has read files or computed, so an upload that takes long is told from a store that does not answer.
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
PATIENCE_S = 60.0  # without progress, after which nobody waits for the deliverer any longer
BEAT_S = 5.0  # between two looks at one's own progress; in it, progress is at least:
BYTES, CPU_S = 65536, 0.1  # bytes read or seconds computed


class Progress:
    """The progress of whichever process delivers, as another process sees it."""

    def __init__(self) -> None:
        self.seen = self._time()
        self.since = time.monotonic()

    def stalled_s(self) -> float:
        """Seconds since the last progress that was seen."""
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
    """Be the project's deliverer in the block.

    While another process is, wait as long as it progresses. Raises OSError when it does not, and says which it is.
    """
    folder, progress = project_root() / DELIVERY, Progress()
    while (handle := claim(folder)) is None:
        if progress.stalled_s() > PATIENCE_S:
            host, _, rest = owner_of(folder).partition(":")
            number = rest.partition(":")[0]
            raise OSError(
                f"process {number} on {host} delivers to MLflow and has made no progress for {PATIENCE_S:g} s: "
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
        before = read, computed
        read, computed = _work()
        if read - before[0] >= BYTES or computed - before[1] >= CPU_S:
            with suppress(OSError):
                os.utime(lock)


def _work() -> tuple[int, float]:
    """Bytes that this process has read, where the system counts them, and seconds that it has computed."""
    process = psutil.Process()
    read = process.io_counters().read_chars if psutil.LINUX else 0
    times = process.cpu_times()
    return read, times.user + times.system
