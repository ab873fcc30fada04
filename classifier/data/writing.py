"""Writes splits of any size, in constant memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from classifier.data.dataset import DataFile
from classifier.data.preprocessing import Pixels
from classifier.project.files import needing_space, sha256, write_atomic

LARGEST_FILE = 1 << 28  # bytes
HEADER_BYTES = 1 << 10  # at most


class SplitWriter:
    """Writes a split of any size from pieces of its images: constant memory, one file or several."""

    def __init__(self, folder: Path, name: str, labels: np.ndarray, digests: Pixels, shape: tuple[int, ...]) -> None:
        """labels, digests: of all images, each of this `shape`, that `append` will get."""
        self.folder, self.name, self.labels, self.digests, self.shape = folder, name, labels, digests, shape
        capacity = max(1, (LARGEST_FILE - HEADER_BYTES) // (prod(shape) + labels.itemsize))
        count = max(1, -(-len(labels) // capacity))
        self.sizes = [min(capacity, len(labels) - start * capacity) for start in range(count)]
        self.files: list[DataFile] = []
        self.left = 0  # images still to be written to the open file
        self._open()

    @property
    def several(self) -> bool:
        return len(self.sizes) > 1

    def append(self, images: Pixels) -> None:
        while len(images):
            if not self.left:
                self._open()
            part, images = images[: self.left], images[self.left :]
            self._write(np.ascontiguousarray(part).data)
            self.left -= len(part)
            if not self.left:
                self._close()

    def close(self) -> tuple[list[DataFile], DataFile | None]:
        """Returns the files and, for several, that of the labels. All images must have been appended."""
        if not self.files:  # an empty split
            self._close()
        assert [file.images for file in self.files] == self.sizes, "append got all images"
        if not self.several:
            return self.files, None
        content = save({"labels": self.labels, "digests": np.ascontiguousarray(self.digests)})
        write_atomic(self.folder / f"{self.name}-labels.safetensors", content)
        labels = DataFile(name=f"{self.name}-labels.safetensors", images=len(self.labels), sha256=sha256(content))
        return self.files, labels

    def _open(self) -> None:
        number, count = len(self.files) + 1, len(self.sizes)
        self.left = self.sizes[number - 1]
        part = f"-{number:05d}-of-{count:05d}" if self.several else ""
        self.file, self.hash = (self.folder / f"{self.name}{part}.safetensors").open("xb"), hashlib.sha256()
        shapes = {"images": ("U8", (self.left, *self.shape))}
        if self.several:
            self._write(_header(shapes))
        else:
            self._write(_header({"labels": ("I64", self.labels.shape)} | shapes))
            self._write(np.ascontiguousarray(self.labels, "<i8").data)

    def _write(self, content: bytes | memoryview) -> None:
        with needing_space(Path(self.file.name)):
            self.file.write(content)
        self.hash.update(content)

    def _close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        images = self.sizes[len(self.files)]
        name = Path(self.file.name).name
        self.files.append(DataFile(name=name, images=images, sha256=self.hash.hexdigest()))


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The safetensors header of these tensors, which have elements of 8 bytes (I64) or 1 (U8)."""
    fields, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * (8 if dtype == "I64" else 1)
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
