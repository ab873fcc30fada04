from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from classifier.project.files import sha256
from classifier.sources import images as images_module
from classifier.sources.images import ImageRecord, Images, open_files, write_images
from classifier.sources.raw import read_manifest
from tests import difficult
from tests.photos import download_params, image, pets, photos, write_files, write_tar, write_zip


def described(raw: Path, source: Path, **values) -> Images:
    """What the stages download and normalize do."""
    raw.mkdir(exist_ok=True)
    write_images(raw, open_files(source, raw), download_params(source, **values))
    return Images(raw, source)


def read_all(found: Images) -> dict[str, bytes]:
    return {record.path: found.read(record) for record in found.records() if record.problem is None}


def contents(raw: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in raw.iterdir()}


def test_a_record_says_what_the_file_is(tmp_path):
    files = {"train/cat/b.jpg": image(0, "jpeg", (7, 5)), "train/cat/a.png": image(1, "png", (3, 4), "P")}
    files |= {"train/dog/c": image(2, "jpeg", (6, 6), "L"), "test/dog/d.txt": b"no image", "train/e.png": b""}
    found = described(tmp_path / "raw", write_files(tmp_path / "photos", files))
    assert found.class_names == ("cat", "dog")
    expected = {
        "test/dog/d.txt": (None, None, None, 1, "test", None),
        "train/cat/a.png": (3, 4, "P", 0, "train", None),
        "train/cat/b.jpg": (7, 5, "RGB", 0, "train", None),
        "train/dog/c": (6, 6, "L", 1, "train", None),
        "train/e.png": (None, None, None, None, None, "is not in a class folder"),
    }
    assert [record.path for record in found.records()] == list(expected)
    for record in found.records():
        width, height, mode, label, split, problem = expected[record.path]
        size, digest = (None, None) if problem else (len(files[record.path]), sha256(files[record.path]))
        about = (width, height, mode, label, split, None, problem, None)
        assert record == ImageRecord(record.path, size, digest, *about)
    assert len(found) == 5
    assert [record.path for record in found.records(1, 3)] == ["train/cat/a.png", "train/cat/b.jpg"]
    assert read_all(found) == {path: content for path, content in files.items() if path != "train/e.png"}


def test_the_same_images_give_the_same_bytes_wherever_they_lie(tmp_path):
    files = pets(3)
    made = {
        "folder": write_files(tmp_path / "a" / "photos", files),
        "elsewhere": write_files(tmp_path / "another place", dict(reversed(files.items()))),
        "zip": write_zip(tmp_path / "photos.zip", files),
    }
    for number, path in enumerate(sorted(made["elsewhere"].rglob("*.png"))):
        os.utime(path, (number, number))
    raws = {}
    for name, source in made.items():
        described(tmp_path / name, source)
        raws[name] = contents(tmp_path / name)
    assert raws["folder"] == raws["elsewhere"] == raws["zip"]
    assert raws["folder"].keys() == {"manifest.json", "images.parquet"}


def test_many_files_are_measured_by_several_processes_in_the_same_order(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "photos", pets(9))
    described(tmp_path / "alone", folder)
    monkeypatch.setattr(images_module, "CHUNK", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    measured_by = set()
    real = images_module._measure

    def watched(*arguments):
        measured_by.add(os.getpid())
        return real(*arguments)

    monkeypatch.setattr(images_module, "_measure", watched)
    described(tmp_path / "several", folder)
    assert contents(tmp_path / "several") == contents(tmp_path / "alone")
    assert measured_by == set(), "this process measured none"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_read_where_they_lie(tmp_path, kind):
    files = {f"photos/{name}": content for name, content in pets(2).items()}
    path = tmp_path / f"photos.{kind}"
    write_zip(path, files) if kind == "zip" else write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    found = described(tmp_path / "raw", path)
    assert read_all(found) == files
    assert found.class_names == ("cat", "dog 2", "dog 10")
    assert contents(tmp_path / "raw").keys() == {"manifest.json", "images.parquet"}


def test_a_table_in_the_folder_or_archive(tmp_path):
    table = b"path,label,split,group\n1.png,b,train,g\n2.png,a,test,h\n"
    files = photos("1.png", "2.png", "3.png") | {"labels.csv": table, ".hidden": b"x"}
    for source in (write_files(tmp_path / "photos", files), write_zip(tmp_path / "z", files)):
        found = described(tmp_path / "raw", source, table="labels.csv")
        assert found.class_names == ("a", "b")
        records = [(record.label, record.split, record.group) for record in found.records()]
        assert records == [(1, "train", "g"), (0, "test", "h")]
        assert read_manifest(tmp_path / "raw").images.skipped == {"hidden": 1, "not in the table": 1}
    with pytest.raises(ValueError, match=r"photos: table gone\.csv does not exist: download\.table is a path in"):
        described(tmp_path / "raw", tmp_path / "photos", table="gone.csv")


def test_what_changed_since_the_download_is_named(tmp_path):
    folder = write_files(tmp_path / "photos", pets(2))
    found = described(tmp_path / "raw", folder)
    first, second, third, *_ = found.records()
    (folder / first.path).write_bytes(image(99))
    with pytest.raises(ValueError, match=r"photos: 'cat/0\.png' has SHA-256 \w+, .* run dvc repro -f download$"):
        found.read(first)
    (folder / second.path).unlink()
    with pytest.raises(ValueError, match=r"'cat/1\.png' cannot be read: No such file or directory: run dvc"):
        found.read(second)
    assert found.read(third) == pets(2)[third.path]


def test_a_folder_that_moved_is_named(tmp_path):
    folder = write_files(tmp_path / "photos", pets(2))
    described(tmp_path / "raw", folder)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"photos does not exist: set download\.folder to the folder, zip"):
        Images(tmp_path / "raw", folder)
    assert len(read_all(Images(tmp_path / "raw", moved))) == 6


@pytest.mark.parametrize("name", ["manifest.json", "images.parquet"])
def test_a_changed_table_is_named(tmp_path, name):
    folder = write_files(tmp_path / "photos", pets(2))
    described(tmp_path / "raw", folder)
    content = (tmp_path / "raw" / name).read_bytes()
    (tmp_path / "raw" / name).write_bytes(content.replace(b"dog", b"dig", 1))
    with pytest.raises(ValueError, match=rf"{name}.* run dvc repro -f download"):
        Images(tmp_path / "raw", folder)


def test_a_header_that_states_any_size_is_read_and_nothing_is_decoded(tmp_path):
    huge = bytearray(image(0, "png"))
    huge[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    files = pets(1) | {"cat/huge.png": bytes(huge)}
    limit = Image.MAX_IMAGE_PIXELS
    found = described(tmp_path / "raw", write_files(tmp_path / "photos", files))
    sizes = {record.path: (record.width, record.mode) for record in found.records()}
    assert sizes["cat/huge.png"][0] in (2**31 - 1, None)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_manifest_counts_files_and_names_classes(tmp_path):
    files = pets(2) | {"cat/.DS_Store": b"x", "stray.txt": b"x"}
    described(tmp_path / "raw", write_files(tmp_path / "photos", files), classes=["dog 10", "cat", "owl", "dog 2"])
    manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
    assert manifest["images"] == {
        "archive": None,
        "class_names": ["dog 10", "cat", "owl", "dog 2"],
        "count": 7,
        "listed": True,
        "skipped": {"hidden": 1},
    }
    assert [file["name"] for file in manifest["files"]] == ["images.parquet"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read", "ignore:Image size")
def test_headers_are_those_that_pillow_reads():
    quick = 0
    for name, content in difficult.files(3 * len(difficult.KINDS)):
        try:
            with Image.open(BytesIO(content)) as opened:
                expected = opened.width, opened.height, opened.mode
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
        found = images_module._jpeg_header(content) if content.startswith(b"\xff\xd8\xff") else None
        assert found in (None, expected), name
        assert images_module._header(content) == expected, name
        quick += found is not None
    assert quick > 20, "of JPEG files"
