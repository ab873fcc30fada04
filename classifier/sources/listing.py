"""The files of a folder of images: which are there, which are skipped, and which cannot be used."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from classifier.errors import UserError

LARGEST_IMAGE = 1 << 28  # bytes
HIDDEN = "hidden"  # how names that start with a dot are counted
SYSTEM = {  # names, in lower case, of files and folders that systems and viewers leave beside images
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}
LINKED = "is a symbolic link to a folder, which DVC does not follow"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a folder or archive; `path` is separated by "/"."""

    path: str
    bytes: int | None = None  # as the archive states it; None in a folder
    problem: str | None = None  # why it cannot be used
    offset: int | None = None  # of its bytes in a tar, uncompressed


@dataclass(frozen=True)
class Listing:
    """The files in the order of their paths' code points."""

    entries: list[Entry]
    empty: list[str]  # folders that hold neither files nor folders, apart from those skipped
    skipped: Mapping[str, int]  # name of a system's file, or HIDDEN -> number of files and folders
    root: str = ""  # "photos/" if this folder holds everything in an archive


def skipped_as(name: str) -> str | None:
    """The key of `Listing.skipped` that counts a file or folder of this name; None if it is not skipped."""
    if name.lower() in SYSTEM:
        return name
    return HIDDEN if name.startswith(".") and name not in (".", "..") else None


def readable(path: str) -> str:
    """The path with escapes for bytes that are not UTF-8."""
    return path if path.isascii() else os.fsencode(path).decode("utf-8", "backslashreplace")


def _problem_of(entry: os.DirEntry[str]) -> str | None:
    if readable(entry.path) != entry.path:
        return "has a name that is not UTF-8"
    try:
        if entry.is_file():
            return None
        if entry.is_symlink():
            return LINKED if entry.is_dir() else "is a symbolic link, but not to a regular file"
    except OSError as error:  # a link to itself
        return f"cannot be read: {error.strerror}"
    return "is not a regular file"


class Folder:
    """A folder of images."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> Listing:
        """List the folder and its subfolders. Raises OSError if the folder itself cannot be read."""
        entries: list[Entry] = []
        empty: list[str] = []
        skipped: Counter[str] = Counter()
        waiting = [""]  # folders: "" or "a/b/"
        while waiting:
            place = waiting.pop()
            found = False
            try:
                with os.scandir(self.path / place) as scan:
                    for each in scan:
                        if kind := skipped_as(each.name):
                            skipped[kind] += 1
                            continue
                        found = True
                        path = place + each.name
                        if each.is_dir(follow_symlinks=False):
                            waiting.append(f"{path}/")
                        else:
                            entries.append(Entry(readable(path), problem=_problem_of(each)))
            except OSError as error:
                if not place:
                    raise
                entries.append(Entry(readable(place[:-1]), problem=f"cannot be read: {error.strerror}"))
            else:
                if place and not found:
                    empty.append(readable(place[:-1]))
        return Listing(sorted(entries, key=lambda entry: entry.path), sorted(empty), dict(sorted(skipped.items())))

    def read(self, path: str, offset: int | None, size: int | None) -> bytes:
        """The bytes of a file. Raises UserError or OSError if it cannot be read."""
        handle = os.open(f"{self.path}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
        try:
            about = os.fstat(handle)
            size = about.st_size
            if not S_ISREG(about.st_mode):
                raise UserError("is not a regular file")
            if size > LARGEST_IMAGE:
                raise UserError(f"has {size:,} bytes: allowed are {LARGEST_IMAGE:,}")
            content = os.read(handle, size + 1)
            while len(content) <= size and (more := os.read(handle, size + 1 - len(content))):
                content += more  # a network file system may return fewer bytes than asked for
            return content
        finally:
            os.close(handle)
