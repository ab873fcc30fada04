"""The images of dataset `folder`: `data/raw/images.parquet`, a row per file, and the original bytes where they lie.

The stage download writes the table (`write_images`) and copies no image. It depends on the images' names and contents
alone, so that it has the same bytes on every machine, wherever the folder lies. `Images` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A file of the source. A file that cannot be used has a `problem`, in one line; its other values may be None."""

    path: str  # in the folder or archive, separated by "/"; unique
    bytes: int
    sha256: str | None  # of the file, 64 hexadecimal digits
    width: int | None  # pixels, as stored: an EXIF orientation is not applied
    height: int | None
    mode: str | None  # of Pillow: L, RGB, CMYK, P, ...
    label: int | None  # index of `Images.class_names`
    split: str | None  # train, validation or test, if the source says so; then every usable image has one
    group: str | None
    problem: str | None
    offset: int | None  # of the file's bytes in a tar, uncompressed


class Images:
    """The records of `data/raw`, in the order of their paths' code points, and the files' verified bytes.

    `read` works in any process that was forked from this one or got a pickled copy.
    """

    class_names: tuple[str, ...]  # in the order of their numbers
    labels: npt.NDArray[np.int64]  # (N,), -1 for None
    splits: list[str | None]  # (N,)
    groups: list[str | None]  # (N,)

    def __init__(self, raw: Path, folder: Path) -> None:
        """`raw`: the output of the stage download; `folder`: download.folder, ignored if an archive was downloaded."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of records, with and without a problem."""
        raise NotImplementedError

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[ImageRecord]:
        """Yield the records `start` to `stop`, with and without a problem."""
        raise NotImplementedError

    def read(self, record: ImageRecord) -> bytes:
        """The bytes of a file without a problem, verified.

        Raises UserError or FileNotFoundError, naming the file, if it is gone or was changed since the stage download.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[ImageRecord, bytes]]:
        """Yield each record without a problem, and its verified bytes, in order."""
        return ((record, self.read(record)) for record in self.records() if record.problem is None)
