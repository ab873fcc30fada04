"""Decodes image files on every core, in chunks, which the next run reuses after a kill.

A chunk is a file `<key>-<SHA-256 of the file>.safetensors` in a folder outside DVC's outputs: the pixels of its images
and the facts about each. The key follows from the contents of the image files, so that after one file is repaired, only
its chunk is decoded again. No process holds more pixels than those of one chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
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


class Source(Protocol):
    """`classifier.sources.images.Images`. A record without a SHA-256 has no file to decode."""

    def records(self, start: int, stop: int) -> Iterable[Any]: ...

    def read(self, record: Any) -> bytes: ...


@dataclass(frozen=True)
class Facts:
    """Facts about K decoded images, in the order of the source."""

    numbers: npt.NDArray[np.int64]  # (K,), of their records; in a chunk's file, their places in the chunk
    digests: Pixels  # (K, 32), SHA-256 of the pixels
    thumbs: Pixels  # (K, 16, 16), `classifier.data.duplicates.thumbnails`
    sums: npt.NDArray[np.int64]  # (K, C, 2), of the pixels and of their squares
    measures: npt.NDArray[np.float64]  # (K, M), `classifier.data.ranges.measured`


@dataclass(frozen=True)
class Chunk:
    path: Path
    facts: Facts
    problems: dict[int, str]  # number of a record that cannot be decoded -> reason


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
    """Decodes the files of a source into chunks in `folder`."""

    source: Source
    preprocessing: Preprocessing
    folder: Path

    def __call__(self, key: str, numbers: range) -> Path:
        """Decode the chunk with this key, of the records with these numbers, and return its file."""
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        images = np.empty((len(numbers), channels, size, size), np.uint8)
        places: list[int] = []
        boxes: list[Box] = []
        problems: dict[int, str] = {}
        for place, record in enumerate(self.source.records(numbers.start, numbers.stop)):
            if record.sha256 is None:
                continue
            try:
                images[len(places)], box = decode_in_box(self.source.read(record), self.preprocessing)
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
            temporary.write_bytes(content)  # not flushed to disk: the checksum in its name reveals an incomplete file
            temporary.replace(path)
        return path


def decode_all(
    decoder: Decoder, hashes: Sequence[str | None], processes: int, advance: Callable[[int], None]
) -> list[Chunk]:
    """Decode all records and return their chunks in order; chunks of an earlier, killed call are reused.

    hashes: of each record's file, None if there is nothing to decode. `advance` is called with the number of files of
    each chunk that is done. Raises UserError if a process is killed.
    """
    preprocessing = decoder.preprocessing
    size = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (preprocessing.channels * preprocessing.image_size**2)))
    paths = dict(_finished(decoder.folder))
    chunks: list[tuple[range, str]] = []
    left: dict[str, range] = {}
    for start in range(0, len(hashes), size):
        numbers = range(start, min(start + size, len(hashes)))
        key = sha256("".join(map(str, hashes[start : numbers.stop])).encode())
        chunks.append((numbers, key))
        if key in paths or key in left:
            advance(len(numbers))
        else:
            left[key] = numbers
    alone = processes == 1 or len(left) < 2
    done = ((key, decoder(key, numbers)) for key, numbers in left.items())
    for key, path in done if alone else _in_processes(decoder, left, processes):
        paths[key] = path
        advance(len(left[key]))
    return [_read(paths[key], numbers) for numbers, key in chunks]


def _finished(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the key and file of each chunk of an earlier call; incomplete files are removed."""
    for path in folder.glob("*-*.*"):
        key, _, known = path.stem.partition("-")
        if path.suffix == SUFFIX and sha256_of(path) == known:
            yield key, path
        else:
            path.unlink()


def _read(path: Path, numbers: range) -> Chunk:
    """The chunk in this file, of the records with these numbers."""
    with safe_open(path, framework="numpy") as file:
        facts = Facts(**{name: file.get_tensor(name) for name in Facts.__dataclass_fields__})
        problems = json.loads(file.metadata()["problems"])
    reasons = {numbers[int(place)]: reason for place, reason in problems.items()}
    return Chunk(path, replace(facts, numbers=numbers.start + facts.numbers), reasons)


def _in_processes(decoder: Decoder, left: Mapping[str, range], processes: int) -> Iterator[tuple[str, Path]]:
    """Yield the key and file of each chunk as it is done."""
    # Forked, because an open archive cannot be sent; nothing here has threads that hold locks.
    executor = ProcessPoolExecutor(processes, get_context("fork"), _begin, (decoder,))
    try:
        keys = {executor.submit(_decode, key, numbers): key for key, numbers in left.items()}
        for future in as_completed(keys):
            yield keys[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a decoding process exited without reporting (killed, or out of memory): run again, decoding resumes"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


_decoder: Decoder | None = None  # in a worker process, set by `_begin`


def _begin(decoder: Decoder) -> None:
    """Initialize a worker process."""
    global _decoder
    _decoder = decoder
    follow_parent()


def _decode(key: str, numbers: range) -> Path:
    assert _decoder, "_begin has run"
    return _decoder(key, numbers)
