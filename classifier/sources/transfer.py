"""Fetches a file from the first mirror that has it: in memory until its checksum is verified, then under its name."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from io import BytesIO
from pathlib import Path

from classifier.project.files import write_atomic
from classifier.sources.catalog import SourceFile
from classifier.sources.mirrors import BrokenConnectionError, MirrorError, pieces_of, without_password
from classifier.sources.progress import transfer_progress
from classifier.sources.raw import LARGEST


def fetch(file: SourceFile, folder: Path, mirrors: Sequence[str], *, deadline_s: float, retries: int) -> str:
    """Put `file` into `folder` and return the mirror that it came from.

    `deadline_s` and `retries` apply to each mirror. Raises OSError, which names the file and says why each mirror
    failed, and leaves nothing in `folder`. No message shows a mirror's password.
    """
    reasons: list[str] = []
    for mirror in mirrors:
        shown = without_password(mirror)
        if reasons:
            print(f"{file.name}: {reasons[-1]}; trying {shown}", file=sys.stderr)
        try:
            content = _fetch_from(mirror, file, deadline_s, retries)
        except MirrorError as error:
            reasons.append(f"{shown}: {error}")
        else:
            write_atomic(folder / file.name, content)
            return shown
    raise OSError(
        f"{file.name} could not be fetched ({'; '.join(reasons)}): "
        "set DATA_MIRROR or download.mirror to an address or a folder that has it"
    )


def _fetch_from(mirror: str, file: SourceFile, deadline_s: float, retries: int) -> bytes:
    deadline = time.monotonic() + deadline_s
    pauses = iter([0.5 * 2**attempt for attempt in range(retries)])  # seconds
    while True:
        try:
            content = _download(mirror, file.name, deadline)
            break
        except BrokenConnectionError:
            pause = next(pauses, None)
            if pause is None or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
    algorithm, _, published = file.checksum.partition(":")
    if hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() != published:
        if content.lstrip()[:5].lower() in (b"<!doc", b"<html"):
            raise MirrorError("it sent an HTML page instead of the file")
        raise MirrorError(f"wrong checksum of {len(content):,} bytes, published is {file.checksum}")
    return content


def _download(mirror: str, name: str, deadline: float) -> bytes:
    """The whole file. Raises MirrorError if it is not complete by `deadline` (monotonic seconds) or exceeds LARGEST.

    A thread reads it, because name resolution, the TLS handshake and the headers can each take forever, and the
    timeouts of requests start anew with every byte. An abandoned thread ends at its next byte; it holds no file.
    """
    whole, abandoned = Future[bytes](), threading.Event()
    with transfer_progress(name) as advance:

        def read() -> None:
            content = BytesIO()
            try:
                with closing(pieces_of(mirror, name)) as pieces:
                    for chunk, total in pieces:
                        if abandoned.is_set():
                            return
                        content.write(chunk)
                        if content.tell() > LARGEST:
                            raise MirrorError(f"it sent more than {LARGEST:,} bytes")
                        advance(content.tell(), total)
                whole.set_result(content.getvalue())
            except Exception as error:
                whole.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        try:
            return whole.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise MirrorError("it took longer than download.deadline_s") from None
        finally:
            abandoned.set()
