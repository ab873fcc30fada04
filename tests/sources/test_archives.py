from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pytest

from classifier.sources import archives
from classifier.sources.archives import Archive
from tests.photos import pets, write_tar, write_zip

FILES = {f"photos/{name}": content for name, content in pets(2).items()}
WRITERS = {
    "zip": write_zip,
    "deflated": lambda path, files: write_zip(path, files, zipfile.ZIP_DEFLATED),
    "tar": write_tar,
    "tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
    "tar.bz2": lambda path, files: write_tar(path, files, "w:bz2"),
    "tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def contents(archive: Archive) -> dict[str, bytes]:
    return {entry.path: archive.read(entry.path, entry.offset, entry.bytes or 0) for entry in archive.list().entries}


def test_every_kind_is_recognized_by_its_content_and_nothing_is_extracted(write, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    archive = Archive(write(tmp_path / "no-extension", FILES), scratch)
    assert contents(archive) == FILES
    assert archive.list().root == "photos/"
    assert [entry.bytes for entry in archive.list().entries] == [len(FILES[name]) for name in sorted(FILES)]
    assert list(scratch.iterdir()) == []


def test_forked_processes_read_at_the_same_time(write, tmp_path):
    archive = Archive(write(tmp_path / "archive", FILES), tmp_path)
    entries = archive.list().entries
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            read = all(
                archive.read(e.path, e.offset, e.bytes or 0) == FILES[e.path] for _ in range(50) for e in entries
            )
            os._exit(0 if read else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def test_what_systems_add_is_skipped_and_empty_folders_are_listed(write, tmp_path):
    extra = {"__MACOSX/photos/cat/._0.png": b"x", "photos/.DS_Store": b"x", "photos/cat/Thumbs.db": b"x"}
    path = write(tmp_path / "archive", FILES | extra)
    listing = Archive(path, tmp_path).list()
    assert [entry.path for entry in listing.entries] == sorted(FILES)
    assert listing.skipped == {"__MACOSX": 1, "hidden": 1, "Thumbs.db": 1}
    assert listing.root == "photos/"


def test_empty_folders_are_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip", "w") as made:
        for name in ("a/", "a/1.png", "b/", "c/d/"):
            made.writestr(name, "" if name.endswith("/") else "x")
    with tarfile.open(tmp_path / "tar", "w") as made_tar:
        for name, kind in ((".", tarfile.DIRTYPE), ("./a", tarfile.DIRTYPE), ("./b", tarfile.DIRTYPE), ("./a/1", b"0")):
            info = tarfile.TarInfo(name)
            info.type = kind
            made_tar.addfile(info)
    of_zip, of_tar = (Archive(tmp_path / name, tmp_path).list() for name in ("zip", "tar"))
    assert (of_zip.empty, of_tar.empty) == (["b", "c/d"], ["b"])
    assert [entry.path for entry in of_tar.entries] == ["a/1"]


def test_members_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("../up.png", "/root.png", "a//b.png", "a\\b.png", "good.png"):
            made.writestr(zipfile.ZipInfo(name), b"x")
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    assert {entry.path: entry.problem for entry in Archive(path, tmp_path).list().entries} == {
        "../up.png": "has a name that is not a path within the archive",
        "/root.png": "has a name that is not a path within the archive",
        "a//b.png": "has a name that is not a path within the archive",
        "a\\b.png": "has a name that is not a path within the archive",
        "good.png": None,
        "link.png": "is a link or a special file",
    }


def test_a_member_whose_bytes_are_damaged_is_named(tmp_path):
    path = write_zip(tmp_path / "archive.zip", FILES)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    archive = Archive(path, tmp_path)
    entry = archive.list().entries[0]
    with pytest.raises(ValueError, match="is damaged in the archive: Bad CRC-32"):
        archive.read(entry.path, entry.offset, entry.bytes or 0)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.95])
def test_an_archive_that_is_cut_off_is_refused(name, kept, tmp_path):
    path = WRITERS[name](tmp_path / "archive", FILES | {"photos/more": os.urandom(300_000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"archive is not a complete zip or tar archive: .*: allowed are zip, tar"):
        Archive(path, tmp_path).list()


def test_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as made:
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("a/1.png")
            info.size = 3
            made.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"archive\.tar holds 'a/1\.png' twice: allowed is one file of each name"):
        Archive(path, tmp_path).list()


def test_another_file_is_no_archive(tmp_path):
    (tmp_path / "photo.png").write_bytes(FILES["photos/cat/0.png"])
    with pytest.raises(ValueError, match=r"photo\.png is not a complete zip or tar archive"):
        Archive(tmp_path / "photo.png", tmp_path).list()


def test_the_size_of_decompressed_bytes_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FLOOR", 1 << 20)
    path = write_tar(tmp_path / "bomb", {"a/1": bytes(5 << 20)}, "w:gz")
    with pytest.raises(ValueError, match=r"bomb expands from [\d,]+ to over 1,048,576 bytes, its limit"):
        Archive(path, tmp_path)
