"""A mirror: a base address (`https://`, `http://`, `file://`) or a folder that has a data set's files.

A relative folder is relative to the project's root (`classifier.project.lineage.project_root`), also in the stages of
`dvc exp run --temp` and of sweeps, which run in copies of the project.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from classifier.errors import UserError
from classifier.project.addresses import without_passwords
from classifier.project.lineage import project_root

CHUNK = 1 << 16  # bytes
CONNECT_S, SILENCE_S = 10, 60  # seconds to wait for a connection, and for the next byte

Piece = tuple[bytes, int | None]  # bytes of a file, and the file's size if the mirror states it
Pieces = Generator[Piece, None, None]


class MirrorError(Exception):
    """A mirror cannot provide a file; the next one may."""


class BrokenConnectionError(MirrorError):
    """The connection broke; a retry may succeed."""


def configured_mirrors(mirror: str | None) -> list[str]:
    """The user's mirrors, DATA_MIRROR before `download.mirror`. Raises UserError for an unknown scheme."""
    mirrors = [named for named in (os.environ.get("DATA_MIRROR"), mirror) if named]
    for named in mirrors:
        if "://" in named and not _has_scheme(named, "http", "https", "file"):
            raise UserError(
                f"mirror {without_passwords(named)}: allowed are addresses with http, https or file, and folders"
            )
    return mirrors


def pieces_of(mirror: str, name: str | None) -> Pieces:
    """Yield a file's bytes as they arrive; without a name, `mirror` is the file's own address.

    Raises MirrorError if the mirror does not have it or aborts the transfer.
    """
    if _has_scheme(mirror, "http", "https"):
        return _from_server(mirror if name is None else f"{mirror.rstrip('/')}/{quote(name)}")
    if _has_scheme(mirror, "file"):
        mirror = url2pathname(urlsplit(mirror).path)
    return _from_file(project_root() / Path(mirror).expanduser() / (name or ""))


def _has_scheme(mirror: str, *schemes: str) -> bool:
    return mirror.lower().startswith(tuple(f"{scheme}://" for scheme in schemes))


def _from_file(path: Path) -> Pieces:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while chunk := file.read(CHUNK):
                yield chunk, size
    except OSError as error:
        raise MirrorError(f"{path}: {error.strerror or error}") from None


def _from_server(url: str) -> Pieces:
    """The bytes as the server stores them: a .gz file sent with `Content-Encoding: gzip` is not decompressed."""
    try:
        with (
            _Session() as session,
            session.get(
                url, stream=True, timeout=(CONNECT_S, SILENCE_S), headers={"Accept-Encoding": "identity"}
            ) as response,
        ):
            if response.status_code != 200:
                raise MirrorError(f"status {response.status_code} {response.reason}")
            total: int | None = None
            with suppress(KeyError, ValueError):
                total = int(response.headers["Content-Length"])
            # read1 returns what has arrived, so that an abandoned download ends at the next byte.
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                yield chunk, total
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise MirrorError(str(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise BrokenConnectionError(_root_cause(error)) from None


class _Session(requests.Session):
    """Follows redirects, except from https to http."""

    def get_redirect_target(self, response: requests.Response) -> str | None:
        target = super().get_redirect_target(response)
        if target is not None and _has_scheme(response.url, "https"):
            address = urljoin(response.url, target)
            if not _has_scheme(address, "https"):
                response.close()
                raise requests.exceptions.InvalidURL(f"redirects from https to {address}, which is refused")
        return target


def _root_cause(error: BaseException) -> str:
    """The operating system's message, without those of the libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
