"""Atomic files and folders: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classifier.errors import UserError


class NoSpaceError(OSError):
    """The disk is full or the user's quota is used up. `errno` is that of the original error."""

    def __init__(self, path: Path, size: int | None, number: int) -> None:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        reason = "the disk is full" if number == errno.ENOSPC else "the disk quota is used up"
        needed = "" if size is None else f"{size:,} bytes needed, "
        super().__init__(
            f"{path} cannot be written: {reason} ({needed}{shutil.disk_usage(existing).free:,} bytes free)"
        )
        self.errno = number


@contextmanager
def needing_space(path: Path, size: int | None = None) -> Iterator[None]:
    """Convert errors of a full disk to NoSpaceError, which names the file, the bytes needed and the bytes free."""
    try:
        yield
    except NoSpaceError:
        raise  # already converted, for a file inside
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            Path(error.filename) if size is None and error.filename else path, size, error.errno
        ) from None


def write_atomic(path: Path, content: bytes, *, verify: bool = False) -> None:
    """Write `content` to `path`, or leave `path` unchanged on failure. Creates the folder if needed.

    With `verify`, the content is read back before the file is renamed; raises OSError if it differs.
    """
    with needing_space(path, len(content)):
        _write_atomic(path, content, verify)


def _write_atomic(path: Path, content: bytes, verify: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if verify and Path(temporary).read_bytes() != content:
            raise OSError(f"{path}: the data read back differs from what was written")
        publish(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a complete, flushed file to its final name, with the permissions of the umask.

    The last step flushes the folder. If that fails, OSError is raised although the new file is in place: after a power
    failure, the previous file may be back.
    """
    apply_umask(temporary)
    temporary.replace(path)
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def apply_umask(path: Path) -> None:
    """Set the permissions of an ordinary new file; temporary files are readable by their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def replacing(path: Path, *subfolders: str) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces `path` when the block ends.

    If the block raises, the new folder is removed and `path` is unchanged; the next call removes what a killed process
    left. If the last flush fails, OSError is raised although the new folder is in place, as in `publish`. Raises
    UserError if `path` contains a folder other than `subfolders`: no stage writes such a folder, so `path` is probably
    wrong.
    """
    path = path.resolve() if path.is_symlink() else path  # keep the link
    new, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    if old.exists() and not path.exists():  # killed between the two renames below
        old.rename(path)
    for entry in sorted(path.iterdir()) if path.exists() else []:
        if entry.is_dir() and not entry.is_symlink() and entry.name not in subfolders:
            raise UserError(f"{path} would be overwritten, but has the folder {entry.name}: remove it if not needed")
    for leftover in (new, old):
        _remove(leftover)
    try:
        with needing_space(path):
            new.mkdir(parents=True)
            yield new
            _swap(new, path, old)
    finally:
        _remove(new)
    _remove(old)


def _swap(new: Path, path: Path, old: Path) -> None:
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    _flush_folder(path.parent)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def json_bytes(value: Any) -> bytes:
    """Serialize as JSON with sorted keys, so that equal values give equal bytes. Raises ValueError for NaN and Inf."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `json_bytes(value)`."""
    write_atomic(path, json_bytes(value))


def read_file(path: Path, largest: int) -> bytes:
    """Read a regular file. Raises UserError if it has more than `largest` bytes or is not a regular file."""
    if (size := regular_size(path)) > largest:
        raise UserError(f"{path} has {size:,} bytes: allowed are {largest:,}")
    return path.read_bytes()


def regular_size(path: Path) -> int:
    """Size of a file in bytes. Raises UserError unless `path` is a regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file")
    return status.st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, 64 hexadecimal digits."""
    regular_size(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
