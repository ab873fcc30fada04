"""Parsers of the original files, from bytes to arrays. Nothing is extracted to disk or executed.

Every parser takes the file's name for its messages, and raises UserError with the file and the index of the image or
row. Decompression stops one byte after the size that the header announces.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.data.cifar import read_archive
from classifier.errors import UserError

Array = npt.NDArray[np.uint8]
Labelled = tuple[Array, Array]  # images in the source's shape, labels (N,)

CLASSES = 10  # of every data set here
LARGEST_COUNT = 1_000_000  # images
DIGITS_BYTES = 1 << 20  # of digits.csv, which has 466,120


def parse(dataset: str, files: Mapping[str, bytes]) -> tuple[Labelled, Labelled | None]:
    """Parse the training images and, if the source has any, the test images, in the order of the files.

    `digits`: (N, 8, 8) in 0..16; `cifar10`: (N, 3, 32, 32) in 0..255; the others: (N, 28, 28) in 0..255.
    """

    def pair(part: str) -> Labelled:
        images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        found = idx(images, _content(files, images), (28, 28)), idx(labels, _content(files, labels), ())
        if len(found[0]) != len(found[1]):
            raise UserError(f"{images} holds {len(found[0])} images, {labels} {len(found[1])} labels")
        _check_labels(labels, found[1])
        return found

    if dataset == "digits":
        return digits_csv("digits.csv.gz", _content(files, "digits.csv.gz")), None
    if dataset == "cifar10":
        name = "cifar-10-binary.tar.gz"
        batches = read_archive(name, _content(files, name))
        for batch, (_, labels) in batches.items():
            _check_labels(f"{name}: {batch}", labels)
        test = batches.pop("test_batch")
        training = batches.values()
        return (np.concatenate([part[0] for part in training]), np.concatenate([part[1] for part in training])), test
    return pair("train"), pair("t10k")


def idx(name: str, content: bytes, item: tuple[int, ...]) -> Array:
    """An IDX file of unsigned bytes, gzipped: (N, *item), N >= 1. Format: the foot of the MNIST home page."""
    dimensions = 1 + len(item)
    header_bytes = 4 + 4 * dimensions
    with gzip.GzipFile(fileobj=BytesIO(content)) as file:
        header = _decompress(name, file, header_bytes)
        magic = bytes((0, 0, 8, dimensions))
        if header[:4] != magic:
            raise UserError(f"{name}: starts with {header[:4].hex()}: allowed is {magic.hex()}, an IDX file of bytes")
        if len(header) < header_bytes:
            raise UserError(f"{name}: the header is cut off after {len(header)} bytes")
        count, *found = struct.unpack(f">{dimensions}I", header[4:])
        if tuple(found) != item:
            raise UserError(f"{name}: holds items of shape {tuple(found)}: allowed is {item}")
        if not 1 <= count <= LARGEST_COUNT:
            raise UserError(f"{name}: announces {count} items: allowed are 1 to {LARGEST_COUNT}")
        size = math.prod(item)  # bytes of one item
        body = _decompress(name, file, count * size + 1)
    if len(body) < count * size:
        raise UserError(f"{name}: announces {count} items, is cut off inside item {len(body) // size}")
    if len(body) > count * size:
        raise UserError(f"{name}: has more than the {count} items that it announces")
    return np.frombuffer(body, np.uint8).reshape(count, *item)


def digits_csv(name: str, content: bytes) -> Labelled:
    """scikit-learn's digits: a row is 64 pixels in 0..16, then the label; (N, 8, 8), N >= 1."""
    with gzip.GzipFile(fileobj=BytesIO(content)) as file:
        text = _decompress(name, file, DIGITS_BYTES + 1)
    if len(text) > DIGITS_BYTES:
        raise UserError(f"{name}: more than {DIGITS_BYTES} bytes when decompressed")
    rows = text.splitlines()
    if not rows:
        raise UserError(f"{name}: empty")
    numbers = np.empty((len(rows), 65), np.uint8)
    for index, row in enumerate(rows):
        values = row.split(b",")
        if len(values) != 65 or not all(value.isdigit() and len(value) <= 2 for value in values):
            raise UserError(f"{name}: row {index} is not 65 integers: {row[:60]!r}")
        numbers[index] = [int(value) for value in values]
    images, labels = numbers[:, :64], numbers[:, 64]
    if (bad := np.flatnonzero(images.max(axis=1) > 16)).size:
        raise UserError(f"{name}: row {bad[0]} has pixel {images[bad[0]].max()}: allowed are 0 to 16")
    _check_labels(name, labels)
    return images.reshape(-1, 8, 8), labels


def _content(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise UserError(f"{name} is missing among {', '.join(files) or 'no files'}: run dvc repro -f download")
    return files[name]


def _check_labels(name: str, labels: Array) -> None:
    if (bad := np.flatnonzero(labels >= CLASSES)).size:
        raise UserError(f"{name}: item {bad[0]} has label {labels[bad[0]]}: allowed are 0 to {CLASSES - 1}")


def _decompress(name: str, file: Any, size: int) -> bytes:
    """Decompress at most `size` bytes."""
    try:
        content: bytes = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: not a complete gzip file: {error}") from None
    return content
