"""The images of dataset `folder`: `data/raw/images.parquet`, a row per file; the files stay where they are.

The stage download writes the table (`write_images`) and copies no image. The table depends only on the images' names
and contents, so that it has the same bytes on every machine, wherever the folder is. `Images` reads it.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from struct import unpack_from
from typing import Any

from PIL import Image

from classifier.errors import UserError
from classifier.params import DownloadParams
from classifier.project.checksummed import write_checksummed
from classifier.project.files import sha256, write_atomic
from classifier.project.processes import follow_parent
from classifier.project.progress import counting
from classifier.sources.archives import Archive
from classifier.sources.layout import Layout, Placed, lay_out
from classifier.sources.listing import Folder, Listing
from classifier.sources.raw import AGAIN, MANIFEST, ImageSet, Manifest, describe, read_manifest, read_verified
from classifier.sources.table import lay_out_by

TABLE = "images.parquet"
CHUNK = 512  # files that a process measures at once
COLUMNS = ("path", "bytes", "sha256", "width", "height", "mode", "label", "split", "group", "problem", "offset")

FRAMES = {0xC0, 0xC1, 0xC2}  # JPEG's markers of frames: baseline, extended, progressive
SEGMENTS = (0xC4, 0xFE)  # first and last marker of the segments that may precede a frame
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}

NOWHERE = (
    "{} does not exist: set download.folder to the folder, zip or tar with the images; a path in the project, or an "
    "absolute path"
)

Files = Folder | Archive
Header = tuple[int, int, str] | tuple[None, None, None]  # width, height, mode
Measured = tuple[int | None, str | None, int | None, int | None, str | None, str | None]  # bytes to mode, problem


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A file of the source. A file that cannot be used has a `problem`, in one line; its other values may be None."""

    path: str  # in the folder or archive, separated by "/"; unique
    bytes: int | None
    sha256: str | None  # of the file, 64 hexadecimal digits
    width: int | None  # pixels, as stored: an EXIF orientation is not applied; None if Pillow does not know the kind
    height: int | None
    mode: str | None  # of Pillow: L, RGB, CMYK, P, ...
    label: int | None  # index of `Images.class_names`
    split: str | None  # train, validation or test, if the source says so; then every usable image has one
    group: str | None
    problem: str | None
    offset: int | None  # of the file's bytes in a tar, uncompressed


class Images:
    """The records of `data/raw`, in the order of their paths' code points, and the files' verified bytes.

    `read` works in this process and in processes that were forked from it.
    """

    class_names: tuple[str, ...]  # in the order of their numbers
    listed: bool  # download.classes names them, which allows classes without images

    def __init__(self, raw: Path, folder: Path) -> None:
        """`raw`: the output of the stage download; `folder`: download.folder, ignored if an archive was downloaded.

        Raises FileNotFoundError or UserError, naming the next command, if one of them is missing or was changed.
        """
        import pyarrow as pa  # 0.1 s
        from pyarrow.parquet import ParquetFile  # read_table would import pandas: 0.4 s

        manifest = read_manifest(raw)
        images = manifest.images
        (file,) = [file for file in manifest.files if file.name == TABLE]
        assert images is not None, "the data set is a folder"
        self.class_names, self.listed = tuple(images.class_names), images.listed
        content = read_verified(raw / TABLE, file)
        self._table = ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        self._files = open_files(raw / images.archive if images.archive else folder, raw)

    def __len__(self) -> int:
        """Number of records, with and without a problem."""
        return int(self._table.num_rows)

    def column(self, name: str) -> list[Any]:
        """A column of the table: a field of all records."""
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def records(self, start: int = 0, stop: int | None = None) -> Iterator[ImageRecord]:
        """Yield the records `start` to `stop`, with and without a problem."""
        part = self._table.slice(start, None if stop is None else max(0, stop - start))
        for batch in part.to_batches(max_chunksize=CHUNK):
            columns = [batch.column(name).to_pylist() for name in COLUMNS]
            for values in zip(*columns, strict=True):
                yield ImageRecord(*values)

    def read(self, record: ImageRecord) -> bytes:
        """The bytes of a file without a problem, verified.

        Raises UserError, naming the file, if it is gone or was changed since the stage download.
        """
        where = f"{self._files.path}: {record.path!r:.300}"
        try:
            content = self._files.read(record.path, record.offset, record.bytes or 0)
        except (UserError, OSError) as error:
            raise UserError(f"{where} {_reason(error)}: {AGAIN}") from None
        if (found := sha256(content)) != record.sha256:
            raise UserError(f"{where} has SHA-256 {found}, {TABLE} says {record.sha256}: it was changed: {AGAIN}")
        return content


def open_files(source: Path, scratch: Path) -> Files:
    """Open a folder or an archive; `scratch`: a folder for the decompressed bytes of a tar.

    Raises FileNotFoundError, naming download.folder, if there is none.
    """
    if source.is_dir():
        return Folder(source)
    if not source.exists():
        raise FileNotFoundError(NOWHERE.format(source))
    return Archive(source, scratch)


def write_images(raw: Path, files: Files, params: DownloadParams, archive: str | None = None) -> Manifest:
    """Describe all images in `raw`; `archive`: the name of the file in it that was downloaded, if any.

    Raises UserError, naming what is wrong, for a source whose classes, splits or groups cannot be determined.
    """
    gc.disable()  # it would scan hundreds of thousands of records repeatedly: 0.4 s for 60,000
    try:
        listing = files.list()
        layout = _layout(files, listing, params)
        left_out = len(listing.entries) - len(layout.files) - (params.table is not None)
        write_atomic(raw / TABLE, _table_bytes(layout, measure(files, layout.files)))
    finally:
        gc.enable()
    manifest = Manifest(
        dataset=params.dataset,
        home="a folder of images" if params.address is None else params.address,
        licence="not stated",
        citation="none",
        files=[
            describe(raw / TABLE, ""),
            *([describe(raw / archive, params.address or "")] if archive else []),
        ],
        images=ImageSet(
            class_names=layout.class_names,
            listed=params.classes is not None,
            count=len(layout.files),
            skipped={**listing.skipped, **({"not in the table": left_out} if left_out else {})},
            archive=archive,
        ),
    )
    write_checksummed(raw / MANIFEST, manifest)
    return manifest


def _layout(files: Files, listing: Listing, params: DownloadParams) -> Layout:
    if params.table is None:
        return lay_out(listing, params)
    path = listing.root + params.table
    found = next((entry for entry in listing.entries if entry.path == path), None)
    if found is None or found.problem:
        reason = found.problem if found else "does not exist: download.table is a path in download.folder"
        raise UserError(f"{files.path}: table {params.table} {reason}")
    return lay_out_by(files.read(path, found.offset, found.bytes or 0), listing, params)


def measure(files: Files, placed: Sequence[Placed]) -> Iterable[Measured]:
    """Yield size, SHA-256 and header of each file, read by a process per core."""
    chunks = [placed[start : start + CHUNK] for start in range(0, len(placed), CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with counting("reading files", len(placed)) as advance:
        if cores == 1 or len(chunks) < 2:
            for chunk in chunks:
                yield from _measure(files, chunk)
                advance(len(chunk))
            return
        # Forked, because an open archive cannot be sent; nothing here has threads that hold locks.
        pool = ProcessPoolExecutor(cores, get_context("fork"), _begin, (files, chunks))
        try:
            for measured in pool.map(_measure_chunk, range(len(chunks))):
                yield from measured
                advance(len(measured))
        except BrokenProcessPool:
            raise UserError(
                "a process that read files exited without reporting (killed, or out of memory): run again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_inherited: tuple[Files, list[Sequence[Placed]]] | None = None  # in a worker process, set by `_begin`


def _begin(files: Files, chunks: list[Sequence[Placed]]) -> None:
    """Initialize a worker process."""
    global _inherited
    _inherited = files, chunks
    follow_parent()


def _measure_chunk(number: int) -> list[Measured]:
    assert _inherited, "_begin has run"
    files, chunks = _inherited
    return _measure(files, chunks[number])


def _measure(files: Files, placed: Sequence[Placed]) -> list[Measured]:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a header may state any size: nothing is decoded
    try:
        with warnings.catch_warnings():  # Pillow's, about metadata
            warnings.simplefilter("ignore")
            return [_measure_one(files, each) for each in placed]
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _measure_one(files: Files, placed: Placed) -> Measured:
    entry = placed.entry
    if entry.problem:
        return entry.bytes, None, None, None, None, entry.problem
    try:
        content = files.read(entry.path, entry.offset, entry.bytes or 0)
    except (UserError, OSError) as error:
        return entry.bytes, None, None, None, None, _reason(error)
    return len(content), sha256(content), *_header(content), None


def _header(content: bytes) -> Header:
    """Width, height and mode as Pillow reads them without decoding."""
    if content.startswith(b"\xff\xd8\xff") and (found := _jpeg_header(content)):
        return found
    try:
        with Image.open(BytesIO(content)) as image:
            return image.width, image.height, image.mode
    except Exception:  # a damaged header; the stage normalize reports files that cannot be decoded
        return None, None, None


def _jpeg_header(content: bytes) -> Header | None:
    """The same for an ordinary JPEG, five times as fast as Pillow; None if Pillow must read it."""
    place = 2
    while content[place : place + 1] == b"\xff" and place + 10 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker in FRAMES:
            bits, height, width, layers = unpack_from(">BHHB", content, place + 4)
            mode = JPEG_MODES.get(layers)
            return (width, height, mode) if bits == 8 and width and height and mode else None
        if not SEGMENTS[0] <= marker <= SEGMENTS[1]:
            return None
        place += 2 + length
    return None


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def _table_bytes(layout: Layout, measured: Iterable[Measured]) -> bytes:
    """The table in Parquet; equal values give equal bytes."""
    numbers = {name: number for number, name in enumerate(layout.class_names)}
    rows = []
    for placed, (*about, problem) in zip(layout.files, measured, strict=True):
        usable = placed.class_name is not None and problem is None
        said = (numbers[str(placed.class_name)], placed.split, placed.group) if usable else (None, None, None)
        rows.append((placed.entry.path, *about, *said, problem, placed.entry.offset))
    import pyarrow as pa  # here, because its threads must not be forked
    from pyarrow.parquet import write_table

    kinds = {"bytes": pa.int64(), "offset": pa.int64(), "width": pa.int32(), "height": pa.int32(), "label": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    sink = pa.BufferOutputStream()
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    write_table(pa.table(columns, schema), sink, compression="zstd", use_dictionary=["mode", "split", "group"])
    return bytes(sink.getvalue())
