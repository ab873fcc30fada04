"""Ownership of folders by running processes: checkpoints, journals, outputs of a stage.

The owner holds a kernel lock (flock) on a file in the folder, which is released however the process ends. A child
process that inherits the handle (`pass_fds`) shares ownership until both have ended.
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

LOCK = "lock"  # the locked file; contains the owner's mark, for people


def claim(folder: Path) -> int | None:
    """Take ownership of `folder`, creating it if needed. Returns a handle to `release`, or None if it is owned."""
    with needing_space(folder / LOCK):
        return _claim(folder)


def _claim(folder: Path) -> int | None:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the folder was removed in the meantime
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
        os.close(handle)  # the folder was removed in the meantime


def release(handle: int) -> None:
    """Release ownership; `handle` is the one that `claim` returned."""
    os.close(handle)


def remove(folder: Path) -> None:
    """Remove a folder that this process owns, atomically for other processes.

    Also removes what is left of removals that were killed. Concurrent calls are safe.
    """
    with suppress(FileNotFoundError):
        folder.rename(folder.with_name(f".{uuid.uuid4().hex}.removed"))
    for gone in folder.parent.glob(f".{'[0-9a-f]' * 32}.removed"):
        shutil.rmtree(gone, ignore_errors=True)


def owner_of(folder: Path) -> str:
    """The mark of the current or last owner of `folder`; empty if there is none."""
    try:
        return (folder / LOCK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Own `folder` during the block and remove it afterwards. Waits for another owner and prints which one it is."""
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


def mark() -> str:
    """`host:pid:start` of this process, which is unique, unlike a process id alone."""
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_running(owner: str) -> bool:
    """Whether the process with this mark runs on this machine."""
    host, number, started = owner.split(":")
    with suppress(psutil.NoSuchProcess):
        return host == socket.gethostname() and f"{psutil.Process(int(number)).create_time():.2f}" == started
    return False


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
