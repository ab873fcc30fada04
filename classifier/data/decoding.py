"""Decodes image files on every core, in chunks that a killed normalization does not decode again.

A chunk is a file `<number>-<SHA-256 of the file>.safetensors` in a folder outside DVC's outputs: the pixels of its
images and the facts about each. No process holds more pixels than those of one chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from classifier.data.duplicates import thumbnails
from classifier.data.pixels import BadImageError, decode
from classifier.data.preprocessing import Pixels, Preprocessing
from classifier.errors import UserError
from classifier.project.files import needing_space, sha256, sha256_of

CHUNK_IMAGES, CHUNK_BYTES = 256, 1 << 22  # at most, of pixels
SUFFIX = ".safetensors"

Numbered = tuple[int, Any]  # a record of the source and its number there


@dataclass(frozen=True)
class Facts:
    """What is known of K decoded images, in the order of the source."""

    numbers: npt.NDArray[np.int64]  # (K,), of their records
    digests: Pixels  # (K, 32), SHA-256 of the pixels
    thumbs: Pixels  # (K, 16, 16), `classifier.data.duplicates.thumbnails`
    sums: npt.NDArray[np.int64]  # (K, C, 2), of the pixels and of their squares


@dataclass(frozen=True)
class Chunk:
    path: Path
    facts: Facts
    problems: dict[int, str]  # number of a record that gave no pixels -> reason

    def __len__(self) -> int:
        """Number of files, with pixels or not."""
        return len(self.facts.numbers) + len(self.problems)

    def pixels(self) -> Pixels:
        """(K, C, H, W)."""
        with safe_open(self.path, framework="numpy") as file:
            found: Pixels = file.get_tensor("pixels")
        return found


def facts_of(images: Pixels, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Facts:
    """images: `(K, C, H, W)`."""
    digests = b"".join(hashlib.sha256(image).digest() for image in np.ascontiguousarray(images))
    values = images.reshape(*images.shape[:2], -1)
    floats = values.astype(np.float64)  # sums of integers below 2 ** 53 are exact
    squares = np.einsum("ncp,ncp->nc", floats, floats).astype(np.int64)
    return Facts(
        numbers=np.asarray(numbers, np.int64),
        digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
        thumbs=thumbnails(images),
        sums=np.stack([values.sum(2, dtype=np.int64), squares], 2),
    )


def joined(parts: Sequence[Facts]) -> Facts:
    """The facts of several chunks as one."""
    return Facts(*(np.concatenate([getattr(part, name) for part in parts]) for name in Facts.__dataclass_fields__))


@dataclass(frozen=True)
class Decoder:
    """Decodes the files of records into chunks in `folder`; other processes get a pickled copy."""

    read: Callable[[Any], bytes]  # from a record to its file's bytes
    preprocessing: Preprocessing
    folder: Path

    def __call__(self, number: int, records: Sequence[Numbered]) -> Path:
        """Decode the chunk with this number and return its file."""
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        images = np.empty((len(records), channels, size, size), np.uint8)
        numbers: list[int] = []
        problems: dict[int, str] = {}
        for index, record in records:
            try:
                images[len(numbers)] = decode(self.read(record), self.preprocessing)
                numbers.append(index)
            except BadImageError as error:
                problems[index] = str(error)
        images = images[: len(numbers)]
        content = save({"pixels": images, **vars(facts_of(images, numbers))}, {"problems": json.dumps(problems)})
        path = self.folder / f"{number:08d}-{sha256(content)}{SUFFIX}"
        temporary = path.with_suffix(".tmp")
        with needing_space(path, len(content)):
            temporary.write_bytes(content)  # not flushed to disk: its name says whether it is whole
            temporary.replace(path)
        return path


def decode_all(
    decoder: Decoder, records: Iterable[Numbered], processes: int, advance: Callable[[int], None]
) -> list[Chunk]:
    """Decode all records in order and return their chunks; those of an earlier, killed call are not decoded again.

    `advance` is called with the number of files of each chunk that is done. Raises UserError if a process is killed.
    """
    preprocessing, iterator = decoder.preprocessing, iter(records)
    size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (preprocessing.channels * preprocessing.image_size**2)))
    chunks = dict(_finished(decoder.folder))
    for chunk in chunks.values():
        advance(len(chunk))
    batches = enumerate(iter(lambda: list(islice(iterator, size)), []))
    left = ((number, batch) for number, batch in batches if number not in chunks)
    first = list(islice(left, 2))
    if processes == 1 or len(first) < 2:
        paths: Iterable[tuple[int, Path]] = ((number, decoder(number, batch)) for number, batch in chain(first, left))
    else:
        paths = _in_processes(decoder, chain(first, left), processes)
    for number, path in paths:
        chunks[number] = _read(path)
        advance(len(chunks[number]))
    return [chunks[number] for number in sorted(chunks)]


def _finished(folder: Path) -> Iterator[tuple[int, Chunk]]:
    """The chunks of an earlier call; what is not whole is removed."""
    for path in folder.glob("*-*.*"):
        number, _, known = path.stem.partition("-")
        if path.suffix == SUFFIX and sha256_of(path) == known:
            yield int(number), _read(path)
        else:
            path.unlink()


def _read(path: Path) -> Chunk:
    with safe_open(path, framework="numpy") as file:
        facts = Facts(**{name: file.get_tensor(name) for name in Facts.__dataclass_fields__})
        problems = json.loads(file.metadata()["problems"])
    return Chunk(path, facts, {int(number): reason for number, reason in problems.items()})


def _in_processes(
    decoder: Decoder, batches: Iterator[tuple[int, list[Numbered]]], processes: int
) -> Iterator[tuple[int, Path]]:
    """Yield chunks as they are done. A few are handed out ahead, so that memory stays the same for any number."""
    context = get_context("forkserver")  # its processes import this module once, and inherit no threads or locks
    context.set_forkserver_preload([__name__])
    executor = ProcessPoolExecutor(processes, context, _begin, (decoder,))
    try:
        working: dict[Future[Path], int] = {}
        while True:
            for number, batch in islice(batches, 2 * processes - len(working)):
                working[executor.submit(_decode, number, batch)] = number
            if not working:
                return
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                yield working.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a decoding process exited without reporting (killed, or out of memory): run again, decoding resumes"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


_decoder: Decoder | None = None  # of this process, which `_begin` has set


def _begin(decoder: Decoder) -> None:
    """What a decoding process does first: it ends with the process that started it, which alone answers signals."""
    global _decoder
    _decoder = decoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent, "this process was started by another"
    connection.wait([parent.sentinel])
    os._exit(1)


def _decode(number: int, records: Sequence[Numbered]) -> Path:
    assert _decoder, "_begin has run"
    return _decoder(number, records)
