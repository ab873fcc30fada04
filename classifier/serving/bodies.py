"""Reads the image files in the body of a request, within limits, with one reason for each refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from classifier.serving.arrays import InputError, from_base64
from classifier.serving.refusal import RefusedError

LARGEST_BODY = 32 << 20  # bytes
LARGEST_BODIES = 256 << 20  # bytes of all requests that are being received or answered
DRAINED = 4 * LARGEST_BODY  # bytes of a too large body that are read and dropped, so that the client gets the response
MOST_IMAGES = 64  # of one request
SLOWEST_BODY_S = 20.0  # to receive one
JSON_FORMS = 'allowed are {"image": BASE64} and {"images": [BASE64, ...]}'


@dataclass(frozen=True)
class File:
    """An image file of a request."""

    name: str
    content: bytes


class Bodies:
    """Receives bodies; `held` is the number of their bytes in memory."""

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Room for one body, freed at the end of the block."""
        place = Place(self)
        try:
            yield place
        finally:
            place.grow(-place.size)


class Place:
    """The bytes of one body."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies, self.size = bodies, 0

    def grow(self, size: int) -> None:
        self.size += size
        self.bodies.held += size

    async def receive(self, request: Request) -> bytes:
        """Receive the whole body. Raises RefusedError (408, 413, 503), or ClientDisconnect."""
        announced = int(request.headers.get("content-length", 0))
        if announced > LARGEST_BODY and "expect" in request.headers:
            raise _too_large()  # the client waits for "100 Continue" before it sends
        parts: list[bytes] = []
        received = 0
        try:
            async with asyncio.timeout(SLOWEST_BODY_S):
                async for part in request.stream():
                    received += len(part)
                    if max(received, announced) <= LARGEST_BODY:
                        self.grow(len(part))
                        parts.append(part)
                    if self.bodies.held > LARGEST_BODIES:
                        raise RefusedError(503, "the memory for requests is full: try again", unread=True)
                    if received > DRAINED:
                        break
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {SLOWEST_BODY_S:g} s", unread=True) from None
        if max(received, announced) > LARGEST_BODY:
            raise _too_large()
        return b"".join(parts)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is larger than {LARGEST_BODY:,} bytes", unread=True)


async def image_files(request: Request, body: bytes) -> list[File]:
    """The image files of a request: its body, the files of a form, or base64 in JSON.

    Raises RefusedError (400, 413, 415).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        files = [File("the body", body)]
    elif kind == "multipart/form-data":
        files = await _of_form(request, body)
    elif kind == "application/json":
        files = _of_json(read_json(body))
    else:
        allowed = "image/*, multipart/form-data and application/json"
        raise RefusedError(415, f"the Content-Type is {kind or 'missing'!r:.80}: allowed are {allowed}")
    if len(files) > MOST_IMAGES:
        raise RefusedError(413, f"the request has {len(files)} images: allowed are {MOST_IMAGES}")
    if not files:
        raise RefusedError(400, "the request has no image")
    return files


async def _of_form(request: Request, body: bytes) -> list[File]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=2 * MOST_IMAGES)  # type: ignore[arg-type]
    parser.spool_max_size = LARGEST_BODY  # in memory, where the body is already
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusedError(413 if "Too many" in error.message else 400, f"the form: {error.message}") from None
    except (KeyError, ValueError) as error:  # a Content-Type without a boundary, or with an unknown charset
        raise RefusedError(400, f"the form is malformed: {error}") from None
    try:
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [File(upload.filename or "a file", await upload.read()) for upload in uploads]
    finally:
        await form.close()


def _of_json(values: Any) -> list[File]:
    match values:
        case {"image": image} if len(values) == 1:
            texts = [image]
        case {"images": list(texts)} if len(values) == 1:
            pass
        case _:
            raise RefusedError(400, f"the JSON has an unknown form: {JSON_FORMS}")
    if not all(isinstance(text, str) for text in texts):
        raise RefusedError(400, f"the JSON has an image that is not a string: {JSON_FORMS}")
    try:
        return [File(f"image {number}", from_base64(text)) for number, text in enumerate(texts, 1)]
    except InputError as error:
        raise RefusedError(400, str(error)) from None


def read_json(body: bytes) -> Any:
    """Parse a body as JSON. Raises RefusedError (400)."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
