"""Fetch a file from the first mirror that has it, verified before it gets its name.

pooch writes to a temporary name in the same folder, compares the checksum and renames. The downloader given to it here
adds what pooch has not: a deadline for the whole file that a server sending a byte a second cannot outlast (the
timeouts of requests start anew with every byte), a cap on the size, folders as mirrors, and no way from https to http.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue

import pooch

from classifier.project.files import apply_umask
from classifier.sources.catalog import SourceFile
from classifier.sources.mirrors import BrokenConnectionError, MirrorError, Piece, Pieces, pieces_of, without_password
from classifier.sources.progress import transfer_progress
from classifier.sources.raw import LARGEST


def fetch(file: SourceFile, folder: Path, mirrors: Sequence[str], *, deadline_s: float, retries: int) -> str:
    """Put `file` into `folder` and return the mirror that gave it.

    `deadline_s` and `retries` hold for each mirror. OSError names the file and says of every mirror why it failed;
    then nothing is left under the file's name nor under a temporary one. No message shows a mirror's password.
    """
    pooch.get_logger().setLevel("ERROR")  # what it would say is said here
    reasons: list[str] = []
    for mirror in mirrors:
        shown = without_password(mirror)
        if reasons:
            print(f"{file.name}: {reasons[-1]}; trying {shown}", file=sys.stderr)
        try:
            _fetch_from(mirror, file, folder, deadline_s, retries)
        except MirrorError as error:
            reasons.append(f"{shown}: {error}")
        except OSError as error:  # ours, not the mirror's; yet a mirror that sends less may fit on a full disk
            reasons.append(f"{shown}: cannot write in {folder}: {error.strerror or error}")
        else:
            return shown
    raise OSError(
        f"{file.name} could not be fetched ({'; '.join(reasons)}): "
        "set DATA_MIRROR or download.mirror to an address or a folder that has it"
    )


def _fetch_from(mirror: str, file: SourceFile, folder: Path, deadline_s: float, retries: int) -> None:
    deadline = time.monotonic() + deadline_s
    for attempt in range(retries + 1):
        downloader = _Downloader(file.name, deadline)
        try:
            pooch.retrieve(
                mirror,
                known_hash=file.checksum,
                fname=file.name,
                path=folder,
                downloader=downloader,
            )
            return
        except ValueError:  # of pooch, in six lines
            raise MirrorError(
                downloader.suspicion or f"wrong checksum of {downloader.received:,} bytes, published is {file.checksum}"
            ) from None
        except BrokenConnectionError:
            if attempt == retries or time.monotonic() + (pause := 0.5 * 2**attempt) > deadline:
                raise
            time.sleep(pause)


class _Downloader:
    """What pooch calls to fill its temporary file: whole and on the disk when it returns."""

    def __init__(self, name: str, deadline: float) -> None:
        self.name, self.deadline = name, deadline
        self.received = 0  # bytes
        self.suspicion = ""  # what a wrong checksum probably comes from

    def __call__(self, mirror: str, output_file: str, pooch: object) -> None:
        temporary = Path(output_file)
        with (
            transfer_progress(self.name) as advance,
            closing(_until(self.deadline, pieces_of(mirror, self.name))) as arriving,
            temporary.open("wb") as file,
        ):
            for chunk, total in arriving:
                if self.received == 0 and chunk.lstrip()[:5].lower() in (b"<!doc", b"<html"):
                    self.suspicion = "it sent an HTML page instead of the file"
                self.received += len(chunk)
                file.write(chunk)
                advance(self.received, total)
            file.flush()
            os.fsync(file.fileno())
        apply_umask(temporary)


def _until(deadline: float, pieces: Pieces) -> Pieces:
    """The same pieces; MirrorError when they are not through by `deadline` (monotonic seconds) or exceed LARGEST.

    A thread waits for them, since name look-up, TLS handshake and a server's headers can each take for ever too. A
    thread given up ends at its next byte; it holds no file of ours.
    """
    arrived: SimpleQueue[Piece | Exception | None] = SimpleQueue()
    given_up = threading.Event()

    def pump() -> None:
        received = 0
        try:
            with closing(pieces):
                for piece in pieces:
                    received += len(piece[0])
                    if received > LARGEST:
                        raise MirrorError(f"it sent more than {LARGEST:,} bytes")
                    if given_up.is_set():
                        return
                    arrived.put(piece)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=pump, daemon=True).start()
    try:
        while True:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise Empty
                item = arrived.get(timeout=left)
            except Empty:
                raise MirrorError("it took longer than download.deadline_s") from None
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        given_up.set()
