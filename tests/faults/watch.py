"""Checks with Python's audit events that nothing is executed and nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXECUTION = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("pickle.find_class", "ctypes.dlopen", "socket.connect"),
}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_seen: list[str] | None = None  # None while not watching
_within: Path | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "ctypes.dlopen" and arguments[0] in {getattr(each, "__file__", 0) for each in [*sys.modules.values()]}:
        return  # a module that is loaded already
    if event in EXECUTION:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event in CHANGES or (event == "open" and (arguments[2] or 0) & WRITING):
        path = arguments[0]  # a number if the file was already open
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder, as rmtree has it
            path = Path(f"/proc/self/fd/{arguments[1]}").resolve() / path
        inside = _within and isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(_within)
        if not (inside or isinstance(path, int)):
            _seen.append(f"{event} {arguments!r:.200}")


@contextmanager
def nothing_happens(but_within: Path | None = None) -> Iterator[None]:
    """Raise AssertionError if the block, in any thread, executes something or changes a file outside `but_within`."""
    global _seen, _within
    if not getattr(sys, "faults_are_watched", False):
        sys.addaudithook(_hook)  # a hook cannot be removed
        sys.faults_are_watched = True  # type: ignore[attr-defined]
    _seen, _within = [], but_within
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert not seen, f"it did {seen}"
