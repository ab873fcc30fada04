"""Small files in the true formats of the sources."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping

import numpy as np

from classifier.cifar import BATCHES


def idx(array: np.ndarray) -> bytes:
    """uint8 of any shape as a gzipped IDX file."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def mnist(training: int = 40, test: int = 20, seed: int = 0) -> dict[str, bytes]:
    """The four files of MNIST, as many images of every class as fit."""
    generator = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", training), ("t10k", test)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(generator.integers(0, 256, (count, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx((np.arange(count) % 10).astype(np.uint8))
    return files


def digits(rows: list[str]) -> bytes:
    return gzip.compress("".join(f"{row}\n" for row in rows).encode(), mtime=0)


def short(text: bytes) -> bytes:
    """Python 2's string of at most 255 bytes, as it is written."""
    return b"U" + bytes((len(text),)) + text


def cifar_batch(images: np.ndarray, labels: list[int], data: bytes | None = None) -> bytes:
    """What Python 2's cPickle.dump(..., 2) wrote: images (N, 3072) uint8; `data` replaces the array's words."""
    content = images.tobytes()
    if data is None:
        data = (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01"
            + b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
            + b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            + b"\x89T" + struct.pack("<i", len(content)) + content + b"tb"
        )  # fmt: skip
    return (
        b"\x80\x02}q\x01("
        + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
        + short(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
        + short(b"data") + b"q\x06" + data
        + short(b"filenames") + b"q\x0c]q\x0d(" + b"".join(short(b"a.png") for _ in labels) + b"eu."
    )  # fmt: skip


def cifar_archive(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def cifar_arrays(each: int = 20) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Batch -> images (N, 3072), labels."""
    generator = np.random.default_rng(1)
    return {
        batch: (generator.integers(0, 256, (each, 3072), np.uint8), [index % 10 for index in range(each)])
        for batch in BATCHES
    }


def cifar10(each: int = 20) -> dict[str, bytes]:
    """The archive, `each` images in every batch, among the other members that it has."""
    members = {"cifar-10-batches-py/batches.meta": b"(dp1\n.", "cifar-10-batches-py/readme.html": b"<html></html>"}
    for batch, (images, labels) in reversed(cifar_arrays(each).items()):
        members[f"cifar-10-batches-py/{batch}"] = cifar_batch(images, labels)
    return {"cifar-10-python.tar.gz": cifar_archive(members)}
