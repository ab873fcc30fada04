"""Reads CIFAR-10's binary archive in memory. Format: "Binary version" on https://www.cs.toronto.edu/~kriz/cifar.html.

A batch is a file of rows of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue pixels, row by row.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from io import BytesIO

import numpy as np
import numpy.typing as npt

from classifier.errors import UserError

Array = npt.NDArray[np.uint8]

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
ROW = 1 + 3 * 32 * 32  # bytes
LARGEST_MEMBER = 10_000 * ROW  # bytes, as each batch has
MEMBERS = 16  # the archive has 9


def read_archive(name: str, content: bytes) -> dict[str, tuple[Array, Array]]:
    """Batch -> images (N, 3, 32, 32), labels (N,), in the order of BATCHES.

    Raises UserError, naming archive and batch, for anything but a gzipped tar archive with these batches.
    """
    members = {f"cifar-10-batches-bin/{batch}.bin": batch for batch in BATCHES}
    batches = {}
    try:
        with tarfile.open(fileobj=_Unpacked(fileobj=BytesIO(content)), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number == MEMBERS or member.size > LARGEST_MEMBER:
                    raise UserError(
                        f"{name}: {member.name}: more than {MEMBERS} members, or more than {LARGEST_MEMBER:,} bytes"
                    )
                if batch := members.get(member.name):
                    if batch in batches or not member.isfile():
                        raise UserError(f"{name}: {member.name} is a duplicate or not a regular file")
                    batches[batch] = _read_batch(f"{name}: {batch}", archive, member)
    except (tarfile.TarError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise UserError(f"{name}: not a complete gzipped tar archive: {error}") from None
    if missing := [member for member, batch in members.items() if batch not in batches]:
        raise UserError(f"{name}: {missing[0]} is missing")
    return {batch: batches[batch] for batch in BATCHES}


class _Unpacked(gzip.GzipFile):
    """Limits each read: tarfile reads a header's extension at once, whatever size it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_MEMBER:
            raise tarfile.ReadError(f"a header of more than {LARGEST_MEMBER:,} bytes")
        return super().read(size)


def _read_batch(where: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[Array, Array]:
    file = archive.extractfile(member)
    assert file is not None, "the member is a regular file"
    if not member.size or member.size % ROW:
        raise UserError(f"{where}: {member.size:,} bytes: allowed is a multiple of {ROW:,}, 1 image or more")
    rows = np.frombuffer(file.read(), np.uint8).reshape(-1, ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), np.ascontiguousarray(rows[:, 0])
