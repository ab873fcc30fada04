"""A mirror that is a server: the transfer of a file by HTTP or HTTPS."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urljoin

import requests
import urllib3

from classifier.sources.mirrors import CHUNK, BrokenConnectionError, MirrorError, Pieces, has_scheme

CONNECT_S, SILENCE_S = 10, 60  # seconds to wait for a connection, and for the next byte


def from_server(url: str) -> Pieces:
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
        if target is not None and has_scheme(response.url, "https"):
            address = urljoin(response.url, target)
            if not has_scheme(address, "https"):
                response.close()
                raise requests.exceptions.InvalidURL(f"redirects from https to {address}, which is refused")
        return target


def _root_cause(error: BaseException) -> str:
    """The operating system's message, without those of the libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
