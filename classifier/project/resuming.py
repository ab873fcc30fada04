"""Folders of work in progress, outside DVC's outputs, so that a process can resume what a killed one left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

from classifier.project.files import sha256_of, write_atomic
from classifier.project.lineage import PACKAGE
from classifier.project.ownership import claim, release, remove

ABANDONED_S = 14 * 24 * 3600  # older leftovers of killed processes are removed


@contextmanager
def resumable(root: Path, name: str) -> Iterator[Path]:
    """Own a folder `root/<name>-<slot>`: one that a killed process left, or a new one.

    Processes that do the same work at the same time use different slots. When the block succeeds, the folder is
    removed, and so are folders that have not changed for ABANDONED_S.
    """
    folder, handle = _claim_place(root, name)
    try:
        yield folder
        remove(folder)
        _remove_abandoned(root)
    finally:
        release(handle)


def own_code(room: str = "") -> dict[str, str]:
    """The modules of the library, or of one room, with their SHA-256: what other code began is not resumed."""
    modules = sorted((PACKAGE / room).rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): sha256_of(path) for path in modules}


@contextmanager
def resumable_run(root: Path, name: str) -> Iterator[tuple[Path, str]]:
    """`resumable`, and the key of the run to which its process and those that resume it belong."""
    with resumable(root, name) as folder:
        known = folder / "run"
        if not known.exists():
            write_atomic(known, uuid4().hex.encode())
        yield folder, known.read_text(encoding="utf-8")


def _claim_place(root: Path, name: str) -> tuple[Path, int]:
    """Claim the first free folder: those that killed processes left come before new ones."""
    for path in chain(sorted(root.glob(f"{name}-*")), (root / f"{name}-{slot}" for slot in count())):
        if (handle := claim(path)) is not None:
            return path, handle
    raise AssertionError("slots have no end")


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob("*-*"):
        try:
            newest = max((path.stat().st_mtime for path in folder.rglob("*")), default=0)
        except FileNotFoundError:
            continue  # another process is using it
        if newest < time.time() - ABANDONED_S and (handle := claim(folder)) is not None:
            remove(folder)
            release(handle)
