"""Image files on the command line: finding them, and decoding them with a process per core."""

from __future__ import annotations

import glob
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from classifier.data.pixels import BadImageError, decode
from classifier.data.preprocessing import Preprocessing
from classifier.errors import UserError
from classifier.project.processes import follow_parent

STDIN = "-"
CHUNK_BYTES = 4 << 20  # bytes of pixels that a process decodes and returns at once
CHUNK = 256  # maximum number of files in it
FEW = 32  # up to this number, files are decoded by this process


@dataclass(frozen=True)
class Named:
    """A path, and its name as typed."""

    name: str
    path: Path


@dataclass(frozen=True)
class Answer:
    """A model's prediction for one file."""

    file: Named
    probabilities: np.ndarray  # (classes,), float32
    warning: str | None  # how the image differs from the training images


@dataclass(frozen=True)
class Problem:
    """A file that cannot be read."""

    file: Named
    reason: str


@dataclass(frozen=True)
class Chunk:
    """Files that were decoded together: the images `(N, C, H, W) uint8` of `files`, and the files without image."""

    files: Sequence[Named]
    images: np.ndarray
    problems: Sequence[Problem]


def typed(place: str) -> list[Named]:
    """The files and folders of one argument: a path, a pattern such as `photos/**/*.jpg`, or `-`.

    Paths are made absolute, because commands change the working folder.
    """
    names = [place] if place == STDIN or Path(place).exists() else sorted(glob.glob(place, recursive=True))  # noqa: PTH207
    return [Named(name, Path(name).absolute()) for name in names or [place]]


def below(places: Iterable[Named]) -> Iterator[Named]:
    """Expand folders to all their files, sorted by name, without hidden files.

    Raises UserError for a path that does not exist.
    """
    for place in places:
        if place.path.is_dir():
            entries = sorted(entry.name for entry in place.path.iterdir() if not entry.name.startswith("."))
            yield from below(Named(f"{place.name.rstrip('/')}/{name}", place.path / name) for name in entries)
        elif place.name == STDIN or place.path.exists():
            yield place
        else:
            raise UserError(f"{place.name} does not exist: allowed are files, folders, patterns and - (standard input)")


def decoded(files: Sequence[Named], preprocessing: Preprocessing, processes: int) -> Iterator[Chunk]:
    """Decode files in chunks, in order. Many files are decoded by several processes, a few chunks ahead."""
    size = preprocessing.channels * preprocessing.image_size**2
    count = max(1, min(CHUNK, CHUNK_BYTES // size))
    chunks = [files[start : start + count] for start in range(0, len(files), count)]
    if len(files) <= FEW:
        yield from (_decode(chunk, preprocessing) for chunk in chunks)
        return
    waiting: deque[Future[Chunk]] = deque()
    with ProcessPoolExecutor(processes, get_context("fork"), follow_parent) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_decode, chunk, preprocessing))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(files: Sequence[Named], preprocessing: Preprocessing) -> Chunk:
    size = preprocessing.image_size
    images = np.empty((len(files), preprocessing.channels, size, size), np.uint8)
    good: list[Named] = []
    problems: list[Problem] = []
    for file in files:
        try:
            content = sys.stdin.buffer.read() if file.name == STDIN else file.path.read_bytes()
            images[len(good)] = decode(content, preprocessing)
            good.append(file)
        except (BadImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(Problem(file, reason))
    return Chunk(good, images[: len(good)], problems)
