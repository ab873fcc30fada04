"""Repairs what a killed DVC leaves behind and does not repair itself: a truncated dvc.lock, stale locks.

DVC writes both files in place. Nothing is lost: a stage whose entry is missing runs again and writes the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil

from classifier.project.files import write_atomic
from classifier.repository.dvc import RWLOCK, locked, reads
from classifier.repository.git import GitError, git
from classifier.repository.lockfile import LOCK, RESOLVE, has_conflicts


def repair() -> list[str]:
    """Repair the current folder's project unless DVC is running in it; returns a line for each repair."""
    with locked() as acquired:
        return [*_repair_lockfile(), *_repair_rwlock()] if acquired else []


def _repair_lockfile() -> list[str]:
    if not LOCK.exists() or reads(LOCK):
        return []
    if _in_conflict():
        return [f"{LOCK} has merge conflicts, nothing was repaired: {RESOLVE}"]
    committed = _committed()
    if committed is not None and committed != LOCK.read_bytes():
        write_atomic(LOCK, committed)
        return [f"{LOCK} was truncated when DVC was killed: restored from the last commit"]
    LOCK.unlink()
    return [f"{LOCK} was truncated when DVC was killed: removed, dvc repro writes it again"]


def _in_conflict() -> bool:
    """Whether a merge or another git command left conflicts for the user to resolve."""
    try:
        return has_conflicts(LOCK.read_bytes()) or bool(git(Path(), "ls-files", "--unmerged", "--", str(LOCK)))
    except GitError:  # no git, or no repository
        return False


def _committed() -> bytes | None:
    try:
        return git(Path(), "show", f"HEAD:./{LOCK}")
    except GitError:
        return None


def _repair_rwlock() -> list[str]:
    """Remove locks of ended processes. DVC does so itself, unless a process id was reused."""
    try:
        locks = json.loads(RWLOCK.read_text(encoding="utf-8"))
        held = [*locks.get("write", {}).values(), *(info for infos in locks.get("read", {}).values() for info in infos)]
        stale = sorted({info["pid"] for info in held if not _is_at_work(info["pid"], info["cmd"])})
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError, KeyError):
        RWLOCK.unlink()
        return [f"{RWLOCK} was truncated when DVC was killed: removed"]
    if not stale or len(stale) < len({info["pid"] for info in held}):
        return []
    RWLOCK.unlink()
    return [f"{RWLOCK} was held by process {', '.join(map(str, stale))}, which is gone: removed"]


def _is_at_work(pid: Any, command: str) -> bool:
    """Whether the process with this id runs this command, which DVC stores as its `sys.argv`."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.AccessDenied:
        return True  # assume so
    except psutil.Error:
        return False
    return bool(words) and command.endswith(words[-1])
