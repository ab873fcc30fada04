"""Hostile archives in place of a data set, as if their checksum were valid: read in memory, within a limit."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from classifier.data.cifar import BATCHES
from classifier.data.formats import parse
from tests import tiny_files
from tests.faults.watch import nothing_happens

LIMIT = 160 << 20  # bytes of memory; a batch may have 32 MiB and exists as bytes, array and images
NAME = "cifar-10-batches-bin/data_batch_1.bin"
BOMB = 200 << 20  # bytes of zeros, 1,000 times the compressed size


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **values: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in values.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(-(-size // 512) * 512 if size < 1 << 20 else 0)


def archive(*members: bytes) -> dict[str, bytes]:
    """A valid archive with these members in front."""
    good = gzip.decompress(tiny_files.cifar10(2)["cifar-10-binary.tar.gz"])
    return {"cifar-10-binary.tar.gz": gzip.compress(b"".join(members) + good, 1)}


def bomb(head: bytes, size: int = BOMB) -> dict[str, bytes]:
    """A member `head` followed by `size` zeros."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(head)
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return {"cifar-10-binary.tar.gz": stream.getvalue()}


def ours(**values: object) -> bytes:
    return member(NAME, **values)  # type: ignore[arg-type]


def idx(head: bytes) -> dict[str, bytes]:
    files = tiny_files.mnist()
    return files | {"train-images-idx3-ubyte.gz": bomb(head)["cifar-10-binary.tar.gz"]}


def attacks() -> dict[str, tuple[str, dict[str, bytes], bool]]:
    """Name -> data set, its files, and whether they must be refused; stray members may be ignored."""
    cifar = {
        **{f"{name!r} beside": (archive(member(name)), False) for name in ("../x", "/tmp/x", "a/../../x", "./x", "..")},
        "a batch's name with ..": (archive(member(f"../{NAME}")), False),
        "a batch's name, absolute": (archive(member(f"/{NAME}")), False),
        "a backslash": (archive(member("..\\x")), False),
        **{
            f"a {word} in place of a batch": (archive(ours(kind=kind, linkname="/etc/passwd")), True)
            for word, kind in (
                ("symbolic link", tarfile.SYMTYPE),
                ("hard link", tarfile.LNKTYPE),
                ("character device", tarfile.CHRTYPE),
                ("block device", tarfile.BLKTYPE),
                ("pipe", tarfile.FIFOTYPE),
                ("folder", tarfile.DIRTYPE),
            )
        },
        "a symbolic link beside": (archive(member("x", tarfile.SYMTYPE, linkname="/etc")), False),
        "a device beside": (archive(member("x", tarfile.CHRTYPE, devmajor=1, devminor=5)), False),
        "a set-uid file beside": (archive(member("x", mode=0o4777)), False),
        "a second batch": (archive(ours(size=600)), True),
        "17 members": (archive(*(member(f"x{number}") for number in range(17))), True),
        "a batch of zeros": (bomb(ours(size=BOMB)), True),
        "a batch of 2^60 bytes": (archive(ours(size=1 << 60)), True),
        "a stray file of zeros": (bomb(member("x", size=BOMB)), True),
        "a long name of zeros": (bomb(member("x", tarfile.GNUTYPE_LONGNAME, BOMB)), True),
        "an extended header of zeros": (bomb(member("x", tarfile.XHDTYPE, BOMB)), True),
        "a global header of zeros": (bomb(member("x", tarfile.XGLTYPE, BOMB)), True),
        "2,000 extended headers": (archive(*(member("x", tarfile.XHDTYPE) for _ in range(2000))), True),
        "zeros alone": (bomb(b""), True),
        "a gzip file within": ({"cifar-10-binary.tar.gz": gzip.compress(bomb(b"")["cifar-10-binary.tar.gz"])}, True),
    }
    header = bytes((0, 0, 8, 3))
    return {
        **{name: ("cifar10", files, refused) for name, (files, refused) in cifar.items()},
        "IDX: more than it announces": ("mnist", idx(header + struct.pack(">3I", 40, 28, 28)), True),
        "IDX: 4 * 10^9 images": ("mnist", idx(header + struct.pack(">3I", 2**32 - 1, 28, 28)), True),
        "digits: zeros": ("digits", {"digits.csv.gz": bomb(b"0," * 100)["cifar-10-binary.tar.gz"]}, True),
    }


def test_nothing_is_written_and_memory_is_bounded(attack, tmp_path: Path, monkeypatch):
    row = attack("hostile archive in place of a data set")
    monkeypatch.chdir(tmp_path)
    found = attacks()
    for name in row.some(list(found)):
        dataset, files, refused = found[name]
        tracemalloc.start()
        with row.case(name), nothing_happens():
            if refused:
                with pytest.raises(ValueError, match=f"^{next(iter(files))}: ") as caught:
                    parse(dataset, files)
                assert "\n" not in str(caught.value)
            else:
                (images, _), test = parse(dataset, files)
                assert test
                assert len(images) + len(test[0]) == 2 * len(BATCHES)
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < LIMIT, f"{peak >> 20} MiB"
        tracemalloc.stop()
        assert list(tmp_path.iterdir()) == []
    row.verdict()
