"""What a DVC that was killed may leave behind and does not mend itself: a dvc.lock cut off in the middle, stale locks.

DVC writes both files in place. What is mended loses nothing: a stage whose entry is gone runs again, to the same bytes.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil

from classifier.project.files import write_atomic

LOCK, RWLOCK, REPOSITORY_LOCK = Path("dvc.lock"), Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/lock")


def mend() -> list[str]:
    """Mend the current folder's project; a line for everything that was done. Nothing while a DVC is at work in it."""
    from zc.lockfile import LockError, LockFile  # DVC's own lock, which ends with its process

    if not REPOSITORY_LOCK.parent.is_dir():
        return []  # DVC never ran here
    try:
        lock = LockFile(str(REPOSITORY_LOCK))
    except LockError:
        return []
    try:
        return [*_mend_lockfile(), *_mend_rwlock()]
    finally:
        lock.close()


def _mend_lockfile() -> list[str]:
    if not LOCK.exists() or is_whole(LOCK):
        return []
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True)  # noqa: S603, S607
    if committed.returncode == 0 and committed.stdout != LOCK.read_bytes():
        write_atomic(LOCK, committed.stdout)
        return [f"{LOCK} was cut off when DVC was killed: taken back from the last commit"]
    LOCK.unlink()
    return [f"{LOCK} was cut off when DVC was killed: removed, DVC writes it anew"]


def is_whole(lock: Path) -> bool:
    """DVC can read it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(lock))
    except (YAMLError, Invalid, UnicodeDecodeError):
        return False
    return True


def _mend_rwlock() -> list[str]:
    """DVC drops what a process held that is gone, but takes any other process with its number for it."""
    try:
        locks = json.loads(RWLOCK.read_text(encoding="utf-8"))
        held = [*locks.get("write", {}).values(), *(info for infos in locks.get("read", {}).values() for info in infos)]
        stale = sorted({info["pid"] for info in held if not _is_at_work(info["pid"], info["cmd"])})
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError, KeyError):
        RWLOCK.unlink()
        return [f"{RWLOCK} was cut off when DVC was killed: removed"]
    if not stale or len(stale) < len({info["pid"] for info in held}):
        return []
    RWLOCK.unlink()
    return [f"{RWLOCK} named process {', '.join(map(str, stale))}, which is not there any more: removed"]


def _is_at_work(pid: Any, command: str) -> bool:
    """Whether the process with this number is the one of this command, which DVC noted as its `sys.argv`."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.AccessDenied:
        return True  # nobody knows that it is not
    except psutil.Error:
        return False
    return bool(words) and command.endswith(words[-1])
