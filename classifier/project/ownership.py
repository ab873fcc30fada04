"""Which living process owns a folder: training's checkpoints, a journal, a stage's outputs.

The owner holds a lock of the kernel's on a file in the folder, and however a process ends, its locks end with it. A
process that is started with the handle among its `pass_fds` owns the folder too, until both have ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from classifier.project.files import needing_space

LOCK = "lock"  # the file in the folder; it holds the owner's mark, for people


def claim(folder: Path) -> int | None:
    """Make `folder` this process's own, creating it if need be: the handle to `release`, None when another owns it."""
    with needing_space(folder / LOCK):
        return _claim(folder)


def _claim(folder: Path) -> int | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the folder was removed meanwhile
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, folder / LOCK):
                os.truncate(handle, 0)
                os.write(handle, mark().encode())
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its folder was removed meanwhile


def release(handle: int) -> None:
    """Give up what `claim` gave."""
    os.close(handle)


def remove(folder: Path) -> None:
    """Remove a folder that is this process's own, at once for everybody else.

    With it goes what others left beside it that were killed while they did the same; several may be at it at once.
    """
    with suppress(FileNotFoundError):
        folder.rename(folder.with_name(f".{uuid.uuid4().hex}.removed"))
    for gone in folder.parent.glob(f".{'[0-9a-f]' * 32}.removed"):
        shutil.rmtree(gone, ignore_errors=True)


def owner_of(folder: Path) -> str:
    """The mark of the process that owns `folder`, or owned it last; empty when it says none."""
    try:
        return (folder / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Own `folder` in the block; while another process owns it, wait, and say for which. The folder goes in the end."""
    said = ""
    while (handle := claim(folder)) is None:
        if (owner := owner_of(folder)) and owner != said:
            said = owner
            host, _, rest = owner.partition(":")
            where = "" if host == socket.gethostname() else f" on {host}"
            process = f"process {rest.partition(':')[0]}{where}"
            print(f"waiting for {process}, which does the same in this folder", file=sys.stderr)
        time.sleep(0.1)
    try:
        yield
    finally:
        remove(folder)
        release(handle)


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
        process = psutil.Process(int(rest.partition(":")[0]))
        return mark(process) == owner and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
