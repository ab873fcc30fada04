"""Which living process owns a folder: training's checkpoints, a journal, a stage's outputs.

The owner's mark lies in the folder. A process that was killed leaves its mark behind, and it no longer counts.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock

from classifier.files import write_atomic

OWNER = "owner"  # the file in the folder


def mark(process: psutil.Process | None = None) -> str:
    """`host:pid:start`: a process id comes again; with host and start it is one of a kind."""
    process = process or psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_living(owner: str) -> bool:
    """Whether the process that left this mark still runs; of another host nobody can know, so it does."""
    host, _, rest = owner.partition(":")
    if host != socket.gethostname():
        return bool(rest)
    try:
        return mark(psutil.Process(int(rest.partition(":")[0]))) == owner
    except (psutil.Error, ValueError):
        return False


def owner_of(folder: Path) -> str | None:
    """The mark of the living process that owns `folder`, or None."""
    try:
        owner = (folder / OWNER).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return owner if is_living(owner) else None


def claim(folder: Path) -> bool:
    """Make `folder` this process's own, creating it if need be; False when another living process owns it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "lock"):
        owner = owner_of(folder)
        if owner not in (None, mark()):
            return False
        write_atomic(folder / OWNER, mark().encode())
        return True


def take_over(folder: Path) -> None:
    """Make `folder` this process's own, whoever owned it: its owner started this process for that."""
    write_atomic(folder / OWNER, mark().encode())


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Own `folder` in the block; while another process owns it, wait, and say for whom."""
    said = None
    while not claim(folder):
        if (owner := owner_of(folder)) and owner != said:
            said = owner
            print(f"waiting for process {owner.split(':')[1]}, which does the same in this folder", file=sys.stderr)
        time.sleep(0.1)
    try:
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
