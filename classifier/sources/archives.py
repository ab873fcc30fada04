"""Zip and tar archives of images, read in place: no file gets its name from an archive.

The content determines the kind. A compressed tar, which allows no random access, is decompressed once into an unnamed
file. Limits bound the time, memory and disk space that a hostile archive can take.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

from classifier.errors import UserError
from classifier.project.files import NoSpaceError, needing_space, regular_size
from classifier.sources.listing import LARGEST_IMAGE, Entry, Listing, readable, skipped_as

LARGEST_HEADER = 1 << 20  # bytes of a tar's extended header
RATIO = 1100  # most bytes of all members per byte of a zip; deflate reaches 1,032, overlapping members more
TAR_RATIO, FLOOR = 100, 1 << 30  # a compressed tar may have 100 times its bytes uncompressed, or 1 GiB
CHUNK = 1 << 20  # bytes
COMPRESSIONS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": cast(Callable[[Path], IO[bytes]], gzip.open),
    b"BZh": cast(Callable[[Path], IO[bytes]], bz2.open),
    b"\xfd7zXZ": cast(Callable[[Path], IO[bytes]], lzma.open),
}
DAMAGED = (  # raised by the libraries for an archive that is damaged, or uses unsupported features
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RecursionError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


class Archive:
    """An open archive. `read` works in this process and in processes that were forked from it."""

    def __init__(self, path: Path, scratch: Path) -> None:
        """Open `path`; a compressed tar is decompressed into an unnamed file in `scratch`.

        Raises UserError unless `path` is a zip or tar, FileNotFoundError if it does not exist.
        """
        self.path, self.size = path, regular_size(path)
        self._zip: zipfile.ZipFile | None = None
        try:
            self._file = _Positioned(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            head = self._file.at(0, 6)
            if head.startswith(b"PK"):
                self._zip = zipfile.ZipFile(cast(IO[bytes], self._file))
                return
            opener = next((opener for magic, opener in COMPRESSIONS.items() if head.startswith(magic)), None)
            if opener is not None:
                with opener(path) as packed:
                    self._file = _Positioned(self._unpacked(packed, scratch))
            self._file.largest = LARGEST_HEADER
        except (UserError, FileNotFoundError, PermissionError, NoSpaceError):
            raise
        except DAMAGED as error:
            raise self._refusal(error) from None

    def list(self) -> Listing:
        """List the archive. Raises UserError if it is damaged, holds a name twice or expands too much."""
        entries: list[Entry] = []
        folders: set[str] = set()
        skipped: Counter[str] = Counter()
        try:
            for entry, is_folder in self._zip_members(self._zip) if self._zip else self._tar_members():
                if kind := next(filter(None, map(skipped_as, entry.path.split("/"))), None):
                    skipped[kind] += not is_folder
                elif is_folder:
                    folders.add(entry.path)
                else:
                    entries.append(entry)
        except UserError:
            raise
        except DAMAGED as error:
            raise self._refusal(error) from None
        entries.sort(key=lambda entry: entry.path)
        for first, second in pairwise(entries):
            if first.path == second.path:
                raise UserError(f"{self.path} holds {first.path!r:.200} twice: allowed is one file of each name")
        paths = [*(entry.path for entry in entries), *folders]
        empty = folders - {above for path in paths for above in _above(path)}
        tops = {path.split("/")[0] for path in paths}
        alone = tops.pop() if len(tops) == 1 and all("/" in entry.path for entry in entries) else None
        return Listing(entries, sorted(empty), dict(sorted(skipped.items())), f"{alone}/" if alone else "")

    def read(self, path: str, offset: int | None, size: int) -> bytes:
        """The bytes of a member. Raises UserError if they cannot be read."""
        try:
            if self._zip is None:
                assert offset is not None, "each member of a tar has an offset"
                return self._file.at(offset, size)
            with self._zip.open(path) as member:
                return member.read(size + 1)
        except DAMAGED as error:
            raise UserError(f"is damaged in the archive: {error}") from None

    def _zip_members(self, archive: zipfile.ZipFile) -> Iterator[tuple[Entry, bool]]:
        """Each member, and whether it is a folder."""
        total = 0
        for info in archive.infolist():
            total += info.file_size
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = (
                "is encrypted"
                if info.flag_bits & 1
                else "is a link or a special file"
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR)
                else None
            )
            path = info.filename.removesuffix("/")
            yield Entry(path, info.file_size, _problem_of(path, info.file_size) or problem), info.is_dir()
        if total > max(FLOOR, RATIO * self.size):
            raise UserError(
                f"{self.path} would expand from {self.size:,} to {total:,} bytes: allowed is {RATIO} times its size"
            )

    def _tar_members(self) -> Iterator[tuple[Entry, bool]]:
        """Each member, and whether it is a folder."""
        self._file.seek(0)
        with tarfile.open(fileobj=cast(IO[bytes], self._file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
                path = member.name.removeprefix("./")
                problem = None if member.isfile() and not member.issparse() else "is a link or a special file"
                if not (member.isdir() and path in ("", ".")):
                    found = _problem_of(path, member.size) or problem
                    yield Entry(readable(path), member.size, found, member.offset_data), member.isdir()
            if self._file.at(archive.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is cut off")

    def _unpacked(self, packed: IO[bytes], scratch: Path) -> int:
        """A handle to an unnamed file with the decompressed bytes; it is deleted when this process exits."""
        allowed = max(FLOOR, TAR_RATIO * self.size)
        with needing_space(scratch), tempfile.TemporaryFile(dir=scratch) as file:
            while chunk := packed.read(CHUNK):
                if file.tell() + len(chunk) > allowed:
                    raise UserError(f"{self.path} expands from {self.size:,} to over {allowed:,} bytes, its limit")
                file.write(chunk)
            file.flush()
            return os.dup(file.fileno())

    def _refusal(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} is not a complete zip or tar archive: {error}: allowed are zip, tar, tar.gz, tar.bz2, "
            "tar.xz, and a folder"
        )


class _Positioned:
    """An open file with a position of its own, so that forked processes can read it at the same time."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, os.close, handle)
        self.size = os.fstat(handle).st_size
        self.largest = self.size  # bytes of one read; a header may claim any size
        self._position = 0

    def at(self, position: int, size: int) -> bytes:
        """At most `size` bytes at a position."""
        return os.pread(self._handle, size, position)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = self.size - self._position
        if size > self.largest:
            raise ValueError(f"a header of {size:,} bytes")
        content = self.at(self._position, size)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if self._position < 0:
            raise ValueError("a position before the start of the file")
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


def _problem_of(path: str, size: int) -> str | None:
    if not path.isprintable() and readable(path) != path:
        return "has a name that is not UTF-8"
    if "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        return "has a name that is not a path within the archive"
    if size > LARGEST_IMAGE:
        return f"has {size:,} bytes: allowed are {LARGEST_IMAGE:,}"
    return None


def _above(path: str) -> Iterator[str]:
    """The folders that a path is in: a/b/c is in a and a/b."""
    for place, letter in enumerate(path):
        if letter == "/":
            yield path[:place]
