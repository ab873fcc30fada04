"""Decodes image files on every core, in chunks that a killed normalization does not decode again.

A chunk is a file `<key>-<SHA-256 of the file>.safetensors` in a folder outside DVC's outputs: the pixels of its images
and the facts about each. The key is that of its files' contents, so that after a repaired file its chunk alone is
decoded again. No process holds more pixels than those of one chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

from classifier.data.duplicates import thumbnails
from classifier.data.pixels import BadImageError, Box, decode_in_box
from classifier.data.preprocessing import Pixels, Preprocessing
from classifier.data.ranges import measure, moments
from classifier.errors import UserError
from classifier.project.files import needing_space, sha256, sha256_of
from classifier.project.processes import follow_parent

CHUNK_IMAGES, CHUNK_BYTES = 512, 1 << 22  # at most, of pixels
SUFFIX = ".safetensors"


class Record(Protocol):
    """A file of the source."""

    @property
    def sha256(self) -> str | None: ...


Batch = Sequence[tuple[int, Record]]  # records with their numbers in the source


@dataclass(frozen=True)
class Facts:
    """What is known of K decoded images, in the order of the source."""

    numbers: npt.NDArray[np.int64]  # (K,), of their records; in a chunk's file, their places in the chunk
    digests: Pixels  # (K, 32), SHA-256 of the pixels
    thumbs: Pixels  # (K, 16, 16), `classifier.data.duplicates.thumbnails`
    sums: npt.NDArray[np.int64]  # (K, C, 2), of the pixels and of their squares
    measures: npt.NDArray[np.float64]  # (K, M), `classifier.data.ranges.measured`


@dataclass(frozen=True)
class Chunk:
    path: Path
    facts: Facts
    problems: dict[int, str]  # number of a record that gave no pixels -> reason
    first: int  # number of its first record


def read_pixels(path: Path) -> Pixels:
    """The pixels of a chunk's file, (K, C, H, W)."""
    with safe_open(path, framework="numpy") as file:
        found: Pixels = file.get_tensor("pixels")
    return found


def facts_of(images: Pixels, numbers: Sequence[int], margin: int, boxes: Sequence[Box] | None = None) -> Facts:
    """images: `(K, C, H, W)`; boxes: the part of each that is not padding."""
    digests = b"".join(hashlib.sha256(image).digest() for image in np.ascontiguousarray(images))
    sums = moments(images)
    return Facts(
        numbers=np.asarray(numbers, np.int64),
        digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
        thumbs=thumbnails(images, boxes),
        sums=sums.astype(np.int64),
        measures=np.stack(list(measure(images, margin, sums).values()), 1),
    )


def joined(parts: Sequence[Facts]) -> Facts:
    """The facts of several chunks as one."""
    return Facts(*(np.concatenate([getattr(part, name) for part in parts]) for name in Facts.__dataclass_fields__))


@dataclass(frozen=True)
class Decoder:
    """Decodes the files of records into chunks in `folder`."""

    read: Callable[[Any], bytes]  # from a record to its file's bytes
    preprocessing: Preprocessing
    folder: Path

    def __call__(self, key: str, batch: Batch) -> Path:
        """Decode the chunk with this key and return its file."""
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        images = np.empty((len(batch), channels, size, size), np.uint8)
        places: list[int] = []
        boxes: list[Box] = []
        problems: dict[int, str] = {}
        for place, (_, record) in enumerate(batch):
            try:
                images[len(places)], box = decode_in_box(self.read(record), self.preprocessing)
                places.append(place)
                boxes.append(box)
            except BadImageError as error:
                problems[place] = str(error)
        images = images[: len(places)]
        facts = facts_of(images, places, self.preprocessing.margin, boxes)
        content = save({"pixels": images, **vars(facts)}, {"problems": json.dumps(problems)})
        path = self.folder / f"{key}-{sha256(content)}{SUFFIX}"
        temporary = path.with_suffix(f".{os.getpid()}")
        with needing_space(path, len(content)):
            temporary.write_bytes(content)  # not flushed to disk: its name says whether it is whole
            temporary.replace(path)
        return path


def decode_all(
    decoder: Decoder, records: Iterable[tuple[int, Record]], processes: int, advance: Callable[[int], None]
) -> list[Chunk]:
    """Decode all records and return their chunks in order; those of an earlier, killed call are not decoded again.

    `advance` is called with the number of files of each chunk that is done. Raises UserError if a process is killed.
    """
    preprocessing, iterator = decoder.preprocessing, iter(records)
    size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (preprocessing.channels * preprocessing.image_size**2)))
    numbers: dict[str, list[list[int]]] = {}  # key -> the numbers of each chunk with it
    paths = dict(_finished(decoder.folder))

    def to_do() -> Iterator[tuple[str, Batch]]:
        while batch := list(islice(iterator, size)):
            key = sha256("".join(f"{record.sha256}" for _, record in batch).encode())
            known = key in paths or key in numbers
            numbers.setdefault(key, []).append([number for number, _ in batch])
            if known:
                advance(len(batch))
            else:
                yield key, batch

    left = to_do()
    first = list(islice(left, 2))
    if processes == 1 or len(first) < 2:
        done: Iterable[tuple[str, Path]] = ((key, decoder(key, batch)) for key, batch in chain(first, left))
    else:
        done = _in_processes(decoder, chain(first, left), processes)
    for key, path in done:
        paths[key] = path
        advance(len(numbers[key][0]))
    chunks = [_read(paths[key], of_chunk) for key, chunks in numbers.items() for of_chunk in chunks]
    return sorted(chunks, key=lambda chunk: chunk.first)


def _finished(folder: Path) -> Iterator[tuple[str, Path]]:
    """The chunks of an earlier call by their keys; what is not whole is removed."""
    for path in folder.glob("*-*.*"):
        key, _, known = path.stem.partition("-")
        if path.suffix == SUFFIX and sha256_of(path) == known:
            yield key, path
        else:
            path.unlink()


def _read(path: Path, numbers: Sequence[int]) -> Chunk:
    """The chunk in this file, whose files have these numbers in the source."""
    with safe_open(path, framework="numpy") as file:
        facts = Facts(**{name: file.get_tensor(name) for name in Facts.__dataclass_fields__})
        problems = json.loads(file.metadata()["problems"])
    in_source = np.array(numbers, np.int64)[facts.numbers]
    reasons = {numbers[int(place)]: reason for place, reason in problems.items()}
    return Chunk(path, replace(facts, numbers=in_source), reasons, numbers[0])


def _in_processes(decoder: Decoder, batches: Iterator[tuple[str, Batch]], processes: int) -> Iterator[tuple[str, Path]]:
    """Yield chunks as they are done. A few are handed out ahead, so that memory stays the same for any number."""
    # Forked, because an open archive cannot be sent; nothing here has threads that hold locks.
    executor = ProcessPoolExecutor(processes, get_context("fork"), _begin, (decoder,))
    try:
        working: dict[Future[Path], str] = {}
        while True:
            for key, batch in islice(batches, 2 * processes - len(working)):
                working[executor.submit(_decode, key, batch)] = key
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
    """What a decoding process does first."""
    global _decoder
    _decoder = decoder
    follow_parent()


def _decode(key: str, batch: Batch) -> Path:
    assert _decoder, "_begin has run"
    return _decoder(key, batch)
