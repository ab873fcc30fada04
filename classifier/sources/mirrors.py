"""A mirror: a base address (`https://`, `http://`, `file://`) or a folder that has a data set's files.

A relative folder is relative to the project's root (`classifier.project.lineage.project_root`), also in the stages of
`dvc exp run --temp` and of sweeps, which run in copies of the project.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from classifier.errors import UserError
from classifier.project.addresses import without_passwords
from classifier.project.lineage import project_root

CHUNK = 1 << 16  # bytes

Piece = tuple[bytes, int | None]  # bytes of a file, and the file's size if the mirror states it
Pieces = Generator[Piece, None, None]


class MirrorError(Exception):
    """A mirror cannot provide a file; the next mirror is tried."""


class BrokenConnectionError(MirrorError):
    """The connection broke; a retry may succeed."""


def configured_mirrors(mirror: str | None) -> list[str]:
    """The user's mirrors, DATA_MIRROR before `download.mirror`. Raises UserError for an unknown scheme."""
    mirrors = [named for named in (os.environ.get("DATA_MIRROR"), mirror) if named]
    for named in mirrors:
        if "://" in named and not has_scheme(named, "http", "https", "file"):
            raise UserError(
                f"mirror {without_passwords(named)}: allowed are addresses with http, https or file, and folders"
            )
    return mirrors


def pieces_of(mirror: str, name: str | None) -> Pieces:
    """Yield a file's bytes as they arrive; without a name, `mirror` is the file's own address.

    Raises MirrorError if the mirror does not have it or aborts the transfer.
    """
    if has_scheme(mirror, "http", "https"):
        from classifier.sources.server import from_server  # here, because it imports requests: 0.1 s

        return from_server(mirror if name is None else f"{mirror.rstrip('/')}/{quote(name)}")
    if has_scheme(mirror, "file"):
        mirror = url2pathname(urlsplit(mirror).path)
    return _from_file(project_root() / Path(mirror).expanduser() / (name or ""))


def has_scheme(mirror: str, *schemes: str) -> bool:
    return mirror.lower().startswith(tuple(f"{scheme}://" for scheme in schemes))


def _from_file(path: Path) -> Pieces:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while chunk := file.read(CHUNK):
                yield chunk, size
    except OSError as error:
        raise MirrorError(f"{path}: {error.strerror or error}") from None
