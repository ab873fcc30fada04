"""Hostile archives and folders of images: nothing is extracted or executed, time and memory are bounded.

Each is refused in one line, or its good images are listed and the others named.
"""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from classifier.data.dataset import SPLITS
from classifier.sources import archives
from classifier.sources.images import Images, open_files, write_images
from stages import normalize
from tests.faults.test_hostile_archive import bomb, member
from tests.faults.watch import nothing_happens
from tests.folders import Normalized
from tests.photos import download_params, image, pets, write_files, write_tar, write_zip

LIMIT = 64 << 20  # bytes of memory
SECONDS = 20  # on a busy machine
GOOD = pets(2)
Make = Callable[[Path], Path]  # writes the source into an empty folder


def tar(*members: bytes, packed: bool = False) -> Make:
    """A tar with these members in front of the good images."""

    def make(folder: Path) -> Path:
        good = write_tar(folder / "good.tar", GOOD).read_bytes()
        (folder / "good.tar").unlink()
        content = b"".join(members) + good
        path = folder / "photos.tar"
        path.write_bytes(gzip.compress(content, 1) if packed else content)
        return path

    return make


def unpacked_to(size: int) -> Make:
    def make(folder: Path) -> Path:
        head = member("cat/bomb.png", size=size)
        (folder / "bomb").write_bytes(bomb(head, size)["cifar-10-binary.tar.gz"])
        return folder / "bomb"

    return make


def zipped(change: Callable[[zipfile.ZipFile], None]) -> Make:
    def make(folder: Path) -> Path:
        path = write_zip(folder / "photos.zip", GOOD, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            change(archive)
        return path

    return make


def named(name: str, content: bytes = b"x", attributes: int = 0) -> Make:
    def change(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = attributes << 16
        archive.writestr(info, content, zipfile.ZIP_DEFLATED)

    return zipped(change)


def patched(old: bytes, new: bytes) -> Make:
    def make(folder: Path) -> Path:
        path = write_zip(folder / "photos.zip", GOOD)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        return path

    return make


def overlapping(folder: Path) -> Path:
    """10,000 entries of one member of 100 MB: 1 TB from 100 KB and more."""
    path = folder / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/0.png", bytes(100_000_000))
        first = archive.infolist()[0]
        for number in range(1, 10_000):
            info = zipfile.ZipInfo(f"cat/{number}.png")
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits"):
                setattr(info, name, getattr(first, name))
            archive.filelist.append(info)
    return path


def of_files(change: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> Path:
        photos = write_files(folder / "photos", GOOD)
        change(photos)
        return photos

    return make


def central(values: bytes) -> bytes:
    """The start of a zip's central directory entry up to flags, with these two bytes of flags."""
    return b"PK\x01\x02\x14\x03\x14\x00" + values


def of_size(side: int) -> bytes:
    """A PNG whose header states this width and height."""
    content = bytearray(image(5))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def huge_header(folder: Path) -> Path:
    return write_zip(folder / "photos.zip", GOOD | {"cat/huge.png": of_size(2**31 - 1)})


ATTACKS: dict[str, tuple[Make, bool]] = {  # whether it must be refused
    **{
        f"zip: {name!r}": (named(name), False)
        for name in ("../x", "/tmp/x", "a/../../x", "..\\x", "cat//x", "x" * 60_000)
    },
    "zip: a name with a newline": (named("cat/a\nb.png", image(9)), False),
    "zip: a class with a newline": (named("a\nb/1.png", image(9)), True),
    "zip: a name twice": (patched(b"cat/1.png", b"cat/0.png"), True),
    "zip: a symbolic link": (named("cat/link.png", b"/etc/passwd", 0o120777), False),
    "zip: a device": (named("cat/device.png", b"", 0o020666), False),
    "zip: 200 MB of zeros": (named("cat/zeros.png", bytes(200_000_000)), False),
    "zip: 10,000 overlapping members": (overlapping, True),
    "zip: encrypted": (patched(central(b"\x00\x00"), central(b"\x01\x00")), True),
    "zip: cut off": (lambda folder: cut(write_zip(folder / "z", GOOD)), True),
    "zip: an image's header of 2^62 pixels": (huge_header, False),
    "zip in a zip": (named("cat/inner.zip", b"PK\x05\x06" + bytes(18)), False),
    **{
        f"tar: a {word}": (tar(member("cat/x.png", kind, linkname="/etc/passwd")), False)
        for word, kind in (
            ("symbolic link", tarfile.SYMTYPE),
            ("hard link", tarfile.LNKTYPE),
            ("character device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
        )
    },
    **{f"tar: {name!r}": (tar(member(name)), False) for name in ("../x", "/tmp/x", "a/../../x", "./x", "..")},
    "tar: a set-uid file": (tar(member("cat/x", mode=0o4777)), False),
    "tar: a file of 2^60 bytes": (tar(member("cat/x", size=1 << 60)), True),
    "tar: a long name of 2^40 bytes": (tar(member("x", tarfile.GNUTYPE_LONGNAME, 1 << 40)), True),
    "tar: an extended header of 2^40 bytes": (tar(member("x", tarfile.XHDTYPE, 1 << 40)), True),
    "tar: a global header of 2^40 bytes": (tar(member("x", tarfile.XGLTYPE, 1 << 40)), True),
    "tar: 2,000 extended headers": (tar(*(member("x", tarfile.XHDTYPE) for _ in range(2000))), True),
    "tar: zeros alone": (lambda folder: write_files(folder, {"t": bytes(1 << 20)}) / "t", True),
    "tar: cut off": (lambda folder: cut(write_tar(folder / "t", GOOD)), True),
    "tar.gz: 200 MB of zeros, over the limit": (unpacked_to(200 << 20), True),
    "tar.gz: cut off": (lambda folder: cut(write_tar(folder / "t", GOOD, "w:gz")), True),
    "tar.gz in a tar.gz": (lambda folder: doubled(write_tar(folder / "t", GOOD, "w:gz")), True),
    "folder: a loop of links": (of_files(lambda photos: (photos / "cat/loop").symlink_to(photos)), False),
    "folder: a link to /dev/zero": (of_files(lambda photos: (photos / "cat/zero.png").symlink_to("/dev/zero")), False),
    "folder: a pipe": (of_files(lambda photos: os.mkfifo(photos / "cat/pipe.png")), False),
    "folder: a file of 2^40 bytes": (of_files(lambda photos: os.truncate(made(photos / "cat/x"), 1 << 40)), False),
    "folder: a name that is not UTF-8": (of_files(lambda photos: made(photos / os.fsdecode(b"cat/\xff.png"))), False),
}


def cut(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def doubled(path: Path) -> Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def made(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_nothing_is_extracted_and_time_and_memory_are_bounded(attack, tmp_path: Path, monkeypatch):
    row = attack("hostile folder or archive of images")
    monkeypatch.setattr(archives, "FLOOR", 64 << 20)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(row.some(list(ATTACKS))):
        make, refused = ATTACKS[name]
        place, raw = tmp_path / f"{number}-source", tmp_path / f"{number}-raw"
        place.mkdir()
        raw.mkdir()
        source = make(place)
        before = sorted(place.rglob("*"))
        began = time.monotonic()
        tracemalloc.start()
        with row.case(name), nothing_happens(but_within=raw):
            if refused:
                with pytest.raises((ValueError, OSError)) as caught:
                    write_images(raw, open_files(source, raw), download_params(source))
                assert "\n" not in str(caught.value)
                assert list(raw.iterdir()) == []
            else:
                write_images(raw, open_files(source, raw), download_params(source))
                found = Images(raw, source)
                good = [record for record in found.records() if record.path in GOOD]
                assert {record.path: found.read(record) for record in good} == GOOD
                assert sorted(path.name for path in raw.iterdir()) == ["images.parquet", "manifest.json"]
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < LIMIT or "200 MB" in name, f"{peak >> 20} MiB"
            assert time.monotonic() - began < SECONDS
        tracemalloc.stop()
        assert sorted(place.rglob("*")) == before
    row.verdict()


LINK, LIMIT_OF_PIXELS = "is a symbolic link, but not to a regular file", "pixels: allowed are 89,478,485 in all"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {  # path -> how it is made, and what is said of it
    "cat/\n.png": (lambda path: path.write_bytes(image()[:99]), "damaged: image file is truncated"),
    "cat/\\xff.png": (lambda path: made(path.with_name(os.fsdecode(b"\xff.png"))), "has a name that is not UTF-8"),
    "cat/device.png": (lambda path: path.symlink_to("/dev/zero"), LINK),
    "cat/huge.png": (lambda path: path.write_bytes(of_size(1 << 20)), f"1048576 x 1048576 {LIMIT_OF_PIXELS}"),
    "cat/huger.png": (lambda path: path.write_bytes(of_size(2**31 - 1)), f"2147483647 x 2147483647 {LIMIT_OF_PIXELS}"),
    "cat/large.png": (
        lambda path: os.truncate(made(path), 1 << 40),
        "has 1,099,511,627,776 bytes: allowed are 268,435,456",
    ),
    "cat/loop": (
        lambda path: path.symlink_to(path.parent),
        "is a symbolic link to a folder, which DVC does not follow",
    ),
    "cat/nowhere.png": (lambda path: path.symlink_to("nowhere.jpg"), LINK),
    "cat/itself.png": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
    "cat/pipe.png": (os.mkfifo, "is not a regular file"),
}
if os.geteuid():  # root reads every file
    HOSTILE["cat/secret.png"] = (lambda path: made(path).chmod(0), "cannot be read: Permission denied")


def test_normalize_says_a_line_of_each_hostile_file_and_writes_all_or_nothing(workspace: Path):
    good = pets(6) | {'cat/a\n"b".png': image(5)}  # a duplicate, whose name is drawn
    normalized = Normalized(workspace, write_files(workspace / "photos", good))
    before = set(workspace.iterdir())
    for path, (make, _) in HOSTILE.items():
        make(normalized.folder / path)
    with nothing_happens(but_within=workspace), pytest.raises(ValueError, match="files cannot be used") as caught:
        normalized.run()
    first, reason = r"'cat/\n.png'", HOSTILE["cat/\n.png"][1]
    many = f"{len(HOSTILE)} of {len(HOSTILE) + len(good)} files cannot be used, the first: {first}: {reason}: repair or"
    assert str(caught.value).startswith(many)
    assert "\n" not in str(caught.value)
    assert {path.name for path in set(workspace.iterdir()) - before} == {".pipeline", "raw", "reports"}
    assert [path.name for path in normalized.reports.iterdir()] == ["problems.csv"]
    expected = {path: reason for path, (_, reason) in HOSTILE.items()}
    assert dict(normalized.table("problems.csv").values.tolist()) == expected

    normalized.write_params(bad_images="exclude")
    with nothing_happens(but_within=workspace):
        normalized.run()
    assert {path.name for path in set(workspace.iterdir()) - before} == {".pipeline", "raw", "reports", "normalized"}
    assert normalized.meta.excluded == expected
    assert sorted(path for split in SPLITS for path in normalized.paths(split)) == sorted(good)


@pytest.mark.parametrize("kind", ["folder", "link to itself", "/dev/zero", "nowhere", "pipe"])
def test_a_file_that_becomes_something_else_after_download_is_a_line(workspace: Path, kind: str):
    normalized = Normalized(workspace, write_files(workspace / "photos", pets(6)))
    normalized.run()
    before = normalized.contents()
    path = normalized.folder / "cat/3.png"
    path.unlink()
    make = {"folder": path.mkdir, "pipe": partial(os.mkfifo, path), "link to itself": partial(path.symlink_to, "3.png")}
    make.get(kind, partial(path.symlink_to, kind))()
    with pytest.raises(ValueError, match=r"photos: 'cat/3\.png' .*: run dvc repro -f download$") as caught:
        normalize.main([str(path) for path in (normalized.params, normalized.raw, normalized.data, normalized.reports)])
    assert "\n" not in str(caught.value)
    assert normalized.contents() == before
