"""Fetches a file from the first mirror that has it: under a temporary name until its checksum is verified."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from classifier.project.addresses import without_passwords
from classifier.project.files import needing_space, publish
from classifier.sources.catalog import SourceFile
from classifier.sources.mirrors import BrokenConnectionError, MirrorError, pieces_of
from classifier.sources.progress import transfer_progress
from classifier.sources.raw import LARGEST


def fetch(
    file: SourceFile,
    folder: Path,
    mirrors: Sequence[str],
    *,
    deadline_s: float,
    retries: int,
    largest: int = LARGEST,
) -> str:
    """Put `file`, of at most `largest` bytes, into `folder` and return the mirror that it came from.

    `deadline_s` and `retries` apply to each mirror. Raises OSError, which names the file and says why each mirror
    failed, and leaves nothing in `folder`. No message shows a mirror's password.
    """
    reasons: list[str] = []
    own = [(file.address, None)] if file.address else []
    for mirror, name in [*((mirror, file.name) for mirror in mirrors), *own]:
        shown = without_passwords(mirror)
        if reasons:
            print(f"{file.name}: {reasons[-1]}; trying {shown}", file=sys.stderr)
        try:
            _fetch_from(mirror, name, file, folder, time.monotonic() + deadline_s, retries, largest)
        except MirrorError as error:
            reasons.append(f"{shown}: {error}")
        else:
            return shown
    raise OSError(
        f"{file.name} could not be fetched ({'; '.join(reasons)}): "
        "set DATA_MIRROR or download.mirror to an address or a folder that has it"
    )


def _fetch_from(
    mirror: str, name: str | None, file: SourceFile, folder: Path, deadline: float, retries: int, largest: int
) -> None:
    algorithm, _, published = file.checksum.partition(":")
    pauses = iter([0.5 * 2**attempt for attempt in range(retries)])  # seconds
    with _published(folder / file.name) as part:
        while True:
            part.seek(0)
            part.truncate()
            try:
                checksum = _download(mirror, name, deadline, part, algorithm, largest)
                break
            except BrokenConnectionError:
                pause = next(pauses, None)
                if pause is None or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
        if not checksum.startswith(published):  # torchvision publishes the first eight digits
            size = part.tell()
            part.seek(0)
            if part.read(1024).lstrip()[:5].lower() in (b"<!doc", b"<html"):
                raise MirrorError("it sent an HTML page instead of the file")
            raise MirrorError(f"wrong checksum of {size:,} bytes, published is {file.checksum}")


@contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file that gets its name at the end of the block; if the block raises, nothing is left."""
    with needing_space(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(Path(temporary), path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _download(mirror: str, name: str | None, deadline: float, into: IO[bytes], algorithm: str, largest: int) -> str:
    """Write the whole file and return its checksum, in hexadecimal digits.

    Raises MirrorError if it is not complete by `deadline` (monotonic seconds) or has more than `largest` bytes. A
    thread reads it, because name resolution, the TLS handshake and the headers can each take forever, and the timeouts
    of requests start anew with every byte. An abandoned thread ends at its next byte.
    """
    whole, abandoned = Future[str](), threading.Event()
    with transfer_progress(name or without_passwords(mirror)) as advance:

        def read() -> None:
            checksum, size = hashlib.new(algorithm, usedforsecurity=False), 0
            try:
                with closing(pieces_of(mirror, name)) as pieces:
                    for chunk, total in pieces:
                        if abandoned.is_set():
                            return
                        if (size := size + len(chunk)) > largest:
                            raise MirrorError(f"it sent more than {largest:,} bytes")
                        checksum.update(chunk)
                        into.write(chunk)
                        advance(size, total)
                whole.set_result(checksum.hexdigest())
            except Exception as error:
                whole.set_exception(error)

        threading.Thread(target=read, daemon=True).start()
        try:
            return whole.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise MirrorError("it took longer than download.deadline_s") from None
        finally:
            abandoned.set()
