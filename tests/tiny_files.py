"""Small files in the true formats of the sources."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping

import numpy as np

from classifier.data.cifar import BATCHES


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


def cifar_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """Images (N, 3072) uint8: each row of bytes is the label, then the pixels."""
    return np.column_stack([np.array(labels, np.uint8), images]).tobytes()


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
    folder = "cifar-10-batches-bin"
    names = b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    members = {f"{folder}/batches.meta.txt": names, f"{folder}/readme.html": b"<html></html>"}
    for batch, (images, labels) in reversed(cifar_arrays(each).items()):
        members[f"{folder}/{batch}.bin"] = cifar_batch(images, labels)
    return {"cifar-10-binary.tar.gz": cifar_archive(members)}
