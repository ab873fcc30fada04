"""Finds images whose pixels changed since the last normalization although file and preprocessing did not."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from classifier.data.collection import Collection
from classifier.data.dataset import SPLITS, DatasetMeta
from classifier.data.preprocessing import Pixels, Preprocessing
from classifier.project.checksummed import read_checksummed
from classifier.project.files import sha256_of


@dataclass(frozen=True)
class Drift:
    """Images whose pixels changed since the last normalization."""

    decoder: str  # of the last normalization
    largest: dict[str, int | None]  # path -> largest difference, 0..255; None if the old pixels are gone


def find_drift(previous: Mapping[str, Path], collection: Collection, preprocessing: Preprocessing) -> Drift | None:
    """Compare images whose files have the same SHA-256 with the last normalization; None if that is not possible."""
    if not {"meta.json", "images.parquet"} <= previous.keys():
        return None
    meta = read_checksummed(previous["meta.json"], DatasetMeta, "normalize")
    table = previous["images.parquet"]
    if meta.preprocessing != preprocessing or meta.images is None or sha256_of(table) != meta.images.sha256:
        return None
    from pyarrow.parquet import ParquetFile  # imported here: it takes 0.2 s; read_table would import pandas

    rows = ParquetFile(table).read(["path", "sha256", "pixels"]).to_pydict()
    before = {path: place for place, path in enumerate(rows["path"])}
    originals, changed = collection.originals, {}
    assert originals.sha256 is not None, "the source has files"
    for place, (path, file) in enumerate(zip(originals.names, originals.sha256, strict=True)):
        old = before.get(path)
        if old is None or rows["sha256"][old] != file:
            continue
        if rows["pixels"][old] != collection.facts.digests[place].tobytes().hex():
            changed[place] = old
    largest: dict[str, int | None] = dict.fromkeys((originals.names[place] for place in changed), None)
    if changed:
        old_images = _OldImages(previous, meta)
        for place, pixels in collection.some(changed.keys()):
            if (old_pixels := old_images.get(changed[place])) is not None:
                difference = np.abs(pixels.astype(np.int16) - old_pixels).max()
                largest[originals.names[place]] = int(difference)
    return Drift(meta.decoder or "an unknown decoder", largest)


class _OldImages:
    """The last normalization's images by their row in images.parquet, memory-mapped from the files that still exist."""

    def __init__(self, previous: Mapping[str, Path], meta: DatasetMeta) -> None:
        self.parts: list[tuple[int, Pixels | None]] = []  # number of the first row after the part, its images
        end = 0
        for split in SPLITS:
            for file in meta.files[split]:
                end += file.images
                there = file.images and file.name in previous
                self.parts.append((end, _images(previous[file.name]) if there else None))

    def get(self, row: int) -> Pixels | None:
        start = 0
        for end, images in self.parts:
            if row < end:
                return None if images is None else images[row - start]
            start = end
        raise IndexError(row)


def _images(path: Path) -> Pixels:
    """The tensor `images` of a safetensors file, memory-mapped without torch."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:header])["images"]
    start, end = (header + offset for offset in fields["data_offsets"])
    return np.frombuffer(content, np.uint8, end - start, start).reshape(fields["shape"])
