"""Files and folders that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

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
    """The disk, or the user's share of it, is full. `errno` is that of the system's own error."""

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
    """Raise NoSpaceError with the file, the bytes that it needs and those that are free when the disk is full."""
    try:
        yield
    except NoSpaceError:
        raise  # of a file inside
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(path, size, error.errno) from None


def write_atomic(path: Path, content: bytes, *, verify: bool = False) -> None:
    """Write `content` under `path`, or leave `path` as it was. Creates the folder when it is missing.

    With `verify` it is read back and compared before it gets its name: OSError when the disk holds something else.
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
            raise OSError(f"{path}: the disk does not give back what was written to it")
        publish(Path(temporary), path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished and flushed file its final name, with the permissions the umask asks for.

    When the folder's flush fails, which comes last, the new file stands whole already and OSError is raised: a power
    cut may still bring the one before back.
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
    """The permissions of an ordinary new file; a temporary one is made for its owner's eyes alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def replacing(path: Path, *subfolders: str) -> Iterator[Path]:
    """A new folder to write into: when the block ends it takes the place of `path`, which stays as it was till then.

    When the block raises, nothing is left of it; what a process that was killed left is removed the next time. When the
    last flush fails, OSError is raised though the new folder stands, as in `publish`. A folder inside `path` that is
    none of `subfolders` raises UserError first: no stage writes one, so `path` is another place.
    """
    path = path.resolve() if path.is_symlink() else path  # the link stays
    new, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    if old.exists() and not path.exists():  # killed between the two renames below
        old.rename(path)
    for entry in sorted(path.iterdir()) if path.exists() else []:
        if entry.is_dir() and not entry.is_symlink() and entry.name not in subfolders:
            raise UserError(f"{path} is to be overwritten, but holds the folder {entry.name}: remove it, if it may go")
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
    """JSON with sorted keys, so that equal values are equal bytes; NaN and Inf raise UserError."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """As json_bytes has it."""
    write_atomic(path, json_bytes(value))


def read_file(path: Path, largest: int) -> bytes:
    """The bytes of an ordinary file; UserError when it has more than `largest`, or is a pipe, which never ends."""
    if (size := ordinary_size(path)) > largest:
        raise UserError(f"{path} has {size:,} bytes: allowed are {largest:,}")
    return path.read_bytes()


def ordinary_size(path: Path) -> int:
    """Bytes of a file; UserError when it is none but a folder, a pipe or a device."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not an ordinary file")
    return status.st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of an ordinary file's bytes, 64 hexadecimal digits."""
    ordinary_size(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
