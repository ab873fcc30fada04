"""All images of a data set while `data/normalized/` is made of them: facts in arrays, pixels in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.data.dataset import SPLITS, DataFile
from classifier.data.decoding import Facts, facts_of, joined
from classifier.data.preprocessing import Pixels
from classifier.data.ranges import measured, ranges_of
from classifier.data.writing import SplitWriter
from classifier.project.files import sha256, write_atomic

HELD = 4096  # images of a known set in a piece

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Piece:
    """`count` of the images, and how to get their pixels `(count, C, H, W)`."""

    count: int
    pixels: Callable[[], Pixels]


@dataclass(frozen=True)
class Originals:
    """What the N images were before they were decoded."""

    names: Sequence[str]  # paths; "train/0" and so on for a known set
    widths: npt.NDArray[np.int32]  # pixels, as stored
    heights: npt.NDArray[np.int32]
    modes: Sequence[str]  # of Pillow
    sha256: Sequence[str] | None  # of the files; None for a known set


@dataclass(frozen=True)
class Collection:
    """N images, in the order of the source."""

    class_names: Sequence[str]
    pieces: Sequence[Piece]
    facts: Facts
    labels: npt.NDArray[np.int64]  # (N,)
    splits: npt.NDArray[np.int8]  # (N,), indices of SPLITS
    originals: Originals

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: (C, H, W)."""
        return self.pieces[0].pixels().shape[1:]

    def pixels(self) -> Iterator[tuple[slice, Pixels]]:
        """Yield the places of each piece's images, and their pixels."""
        start = 0
        for piece in self.pieces:
            stop = start + piece.count
            yield slice(start, stop), piece.pixels()
            start = stop

    def some(self, places: Container[int]) -> Iterator[tuple[int, Pixels]]:
        """Yield these places, each with its image."""
        for part, pixels in self.pixels():
            for place in range(part.start, part.stop):
                if place in places:
                    yield place, pixels[place - part.start]

    def counts(self, kept: Mask) -> dict[str, list[int]]:
        """Split -> number of images per class."""
        of_split = {split: self.labels[kept & (self.splits == number)] for number, split in enumerate(SPLITS)}
        return {
            split: np.bincount(labels, minlength=len(self.class_names)).tolist() for split, labels in of_split.items()
        }

    def sums(self, chosen: Mask) -> tuple[npt.NDArray[np.int64], int]:
        """Sums of the chosen images' pixels and of their squares, `(C, 2)`, and the number of pixels per channel."""
        return self.facts.sums[chosen].sum(0), int(chosen.sum()) * self.shape[1] * self.shape[2]

    def ranges(self, chosen: Mask) -> dict[str, list[float]]:
        """`classifier.data.ranges` of the chosen images."""
        measures = self.facts.measures[chosen]
        return ranges_of({name: measures[:, place] for place, name in enumerate(measured(self.shape[0]))})

    def write(self, folder: Path, kept: Mask) -> tuple[dict[str, list[DataFile]], dict[str, DataFile]]:
        """Write the splits; returns each split's files, and the label files of splits with several files."""
        chosen = [kept & (self.splits == number) for number in range(len(SPLITS))]
        writers = [
            SplitWriter(folder, split, self.labels[mine], self.facts.digests[mine], self.shape)
            for split, mine in zip(SPLITS, chosen, strict=True)
        ]
        for part, pixels in self.pixels():
            for writer, mine in zip(writers, chosen, strict=True):
                writer.append(pixels[mine[part]])
        closed = {writer.name: writer.close() for writer in writers}
        files = {split: files for split, (files, _) in closed.items()}
        return files, {split: labels for split, (_, labels) in closed.items() if labels}

    def write_table(self, folder: Path, kept: Mask) -> DataFile:
        """Write images.parquet: a row per image, in the order of the splits."""
        from pyarrow import BufferOutputStream, Table  # imported here, as parquet is: they take 0.2 s
        from pyarrow.parquet import write_table

        order = np.concatenate([np.flatnonzero(kept & (self.splits == number)) for number in range(len(SPLITS))])
        originals, hashes = self.originals, self.originals.sha256
        assert hashes is not None, "the source has files"
        columns = {
            "path": _strings(originals.names[place] for place in order),
            "split": _strings(SPLITS[number] for number in self.splits[order]),
            "label": _numbers(self.labels[order]),
            "width": _numbers(originals.widths[order]),
            "height": _numbers(originals.heights[order]),
            "mode": _strings(originals.modes[place] for place in order),
            "sha256": _strings(hashes[place] for place in order),  # of the file
            "pixels": _strings(_hex(self.facts.digests[order])),  # SHA-256
        }
        sink = BufferOutputStream()
        table = Table.from_arrays(list(columns.values()), names=list(columns))
        write_table(table, sink, compression="zstd", use_dictionary=["split", "mode"])
        content = sink.getvalue().to_pybytes()
        write_atomic(folder / "images.parquet", content)
        return DataFile(name="images.parquet", images=len(order), sha256=sha256(content))


def _hex(digests: Pixels) -> Iterator[str]:
    text = digests.tobytes().hex()
    return (text[start : start + 64] for start in range(0, len(text), 64))


def _strings(values: Iterable[str]) -> Any:
    """An Arrow array. Made from buffers, because `pyarrow.array` imports pandas, which takes 0.4 s."""
    from pyarrow import LargeStringArray, py_buffer

    texts = list(values)
    together = "".join(texts)
    lengths = map(len, texts) if together.isascii() else (len(text.encode()) for text in texts)
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    return LargeStringArray.from_buffers(len(texts), py_buffer(ends), py_buffer(together.encode()))


def _numbers(values: npt.NDArray[Any]) -> Any:
    """An Arrow array."""
    from pyarrow import Array, from_numpy_dtype, py_buffer

    values = np.ascontiguousarray(values)
    return Array.from_buffers(from_numpy_dtype(values.dtype), len(values), [None, py_buffer(values)])


def held(images: Pixels, margin: int) -> tuple[list[Piece], Facts]:
    """The pieces of images in memory, and the facts about them."""
    parts = [images[start : start + HELD] for start in range(0, len(images), HELD)]
    facts = joined([facts_of(part, range(len(part)), margin) for part in parts])
    return [Piece(len(part), partial(_same, part)) for part in parts], facts


def _same(images: Pixels) -> Pixels:
    return images
