"""Files that are whole or absent: written to a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` under `path`, or leave `path` as it was; makes the folder when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished and flushed file its final name, with the permissions the umask asks for."""
    apply_umask(temporary)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def apply_umask(path: Path) -> None:
    """The permissions of an ordinary new file; a temporary one is made for its owner's eyes alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def empty_folder(path: Path) -> None:
    """Make the folder, or remove the files in it, so that it will hold what is written next and nothing else.

    A folder inside it raises ValueError before anything is removed: no stage writes one, so `path` is some other place.
    """
    path.mkdir(parents=True, exist_ok=True)
    entries = sorted(path.iterdir())
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            raise ValueError(f"{path} is to be overwritten, but holds the folder {entry.name}: remove it, if it may go")
    for entry in entries:
        entry.unlink()


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, so that equal values are equal bytes; NaN and Inf raise ValueError."""
    write_atomic(
        path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
