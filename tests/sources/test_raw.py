from __future__ import annotations

import json

import pytest

from classifier.project.checksummed import write_checksummed
from classifier.project.files import sha256
from classifier.sources.catalog import SOURCES, Origin, SourceFile
from classifier.sources.raw import Manifest, read_raw, write_manifest
from tests.forgery import edit_forged

ORIGIN = Origin(
    files=(SourceFile("a.gz", "md5:0"), SourceFile("b.gz", "md5:0")), mirrors=("https://official/", "http://other/")
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"first")
    (tmp_path / "b.gz").write_bytes(b"second file")
    write_manifest(tmp_path, "kmnist", ORIGIN)
    return tmp_path


def test_the_manifest_says_what_the_files_are(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest.pop("seal")) == 64
    assert manifest == {
        "format": 2,
        "dataset": "kmnist",
        "home": SOURCES["kmnist"].home,
        "licence": "CC BY-SA 4.0",
        "citation": SOURCES["kmnist"].citation,
        "files": [
            {"name": "a.gz", "source": "https://official/a.gz", "bytes": 5, "sha256": sha256(b"first")},
            {"name": "b.gz", "source": "https://official/b.gz", "bytes": 11, "sha256": sha256(b"second file")},
        ],
        "images": None,
    }


def test_what_was_written_is_read(folder):
    manifest, contents = read_raw(folder)
    assert manifest == write_manifest(folder, "kmnist", ORIGIN)
    assert contents == {"a.gz": b"first", "b.gz": b"second file"}


def test_a_changed_file_is_named_with_the_next_command(folder):
    (folder / "b.gz").write_bytes(b"second fi1e")
    with pytest.raises(ValueError, match=r"b\.gz has SHA-256 .*, manifest\.json says .*: run dvc repro -f download"):
        read_raw(folder)


@pytest.mark.parametrize("name", ["manifest.json", "a.gz"])
def test_a_missing_file_is_named_with_the_next_command(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist: run dvc repro download"):
        read_raw(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"bytes": 5', '"bytes": "5"'),
        ('"bytes": 5', '"bytes": -1'),
        ('"dataset"', '"unknown": 1, "dataset"'),
        ('"name": "a.gz"', '"name": "../a.gz"'),
        ('"name": "a.gz"', '"name": "/etc/passwd"'),
        ('"sha256": "', '"sha256": "0'),
    ],
)
def test_a_manifest_that_no_version_wrote_is_named_with_the_next_command(folder, before, after):
    edit_forged(folder / "manifest.json", before, after)
    with pytest.raises(ValueError, match=r"manifest\.json is corrupt.*: run dvc repro -f download"):
        read_raw(folder)


@pytest.mark.parametrize(("name", "shown"), [("imagenet", "'imagenet'"), ("[" * 5000, r"'\[{79}")])
def test_an_unknown_dataset_is_named_in_a_line_of_a_readable_length(folder, name, shown):
    path = folder / "manifest.json"
    values = json.loads(path.read_text()) | {"dataset": name}
    del values["seal"], values["format"]
    write_checksummed(path, Manifest.model_validate(values))
    with pytest.raises(ValueError, match=rf"manifest\.json: dataset {shown}: allowed are digits, mnist"):
        read_raw(folder)
