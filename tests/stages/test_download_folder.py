"""The stage download for dataset `folder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from classifier.params import load_params
from classifier.project.files import sha256_of
from classifier.sources.images import Images
from stages import download
from tests.loopback import send
from tests.photos import pets, write_download_params, write_files, write_zip


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def params(place: Path, **values: Any) -> str:
    return write_download_params(place / "params.yaml", **values)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_listed_and_not_copied(tmp_path, capsys):
    folder = write_files(tmp_path / "photos", pets(2) | {"cat/.DS_Store": b"x"})
    download.main([params(tmp_path, folder=str(folder)), str(tmp_path / "raw")])
    assert capsys.readouterr().out == "photos: 6 files, 3 classes\nskipped: 1 hidden\n"
    assert names(tmp_path / "raw") == {"manifest.json", "images.parquet"}


def test_a_zip_by_address_is_stored_verified_and_read(tmp_path, serve, capsys):
    archive = write_zip(tmp_path / "photos.zip", pets(2))
    server = serve(lambda request: send(request, archive.read_bytes()))
    address, raw = f"{server.address}files/pet%20photos.zip?download=1", tmp_path / "raw"
    file = params(tmp_path, address=address, sha256=sha256_of(archive), folder=str(tmp_path / "ignored"))
    download.main([file, str(raw)])
    assert server.asked == ["/files/pet%20photos.zip?download=1"]
    assert capsys.readouterr().out.startswith(f"pet_photos.zip from {address}\npet photos: 6 files, 3 classes\n")
    assert names(raw) == {"manifest.json", "images.parquet", "pet_photos.zip"}
    manifest = json.loads((raw / "manifest.json").read_text())
    assert manifest["home"] == address
    assert {entry["name"]: entry["source"] for entry in manifest["files"]} == {
        "images.parquet": "",
        "pet_photos.zip": address,
    }
    found = Images(raw, tmp_path / "ignored")
    assert {record.path: found.read(record) for record in found.records()} == pets(2)


def test_an_archive_comes_from_a_mirror_first(tmp_path, serve):
    folder = tmp_path / "mirror"
    folder.mkdir()
    archive = write_zip(folder / "photos.zip", pets(2))
    server = serve(lambda request: send(request, b"", status=404))
    address = f"{server.address}photos.zip"
    download.main(
        [params(tmp_path, address=address, sha256=sha256_of(archive), mirror=str(folder)), str(tmp_path / "raw")]
    )
    assert server.asked == []


def test_an_archive_with_another_checksum_is_refused(tmp_path, serve):
    archive = write_zip(tmp_path / "photos.zip", pets(2))
    server = serve(lambda request: send(request, archive.read_bytes()))
    with pytest.raises(
        OSError, match=r"photos\.zip could not be fetched .*wrong checksum of [\d,]+ bytes, published is"
    ):
        download.main([params(tmp_path, address=f"{server.address}photos.zip", sha256="0" * 64), str(tmp_path / "raw")])
    with pytest.raises(ValueError, match=r"photos\.zip has SHA-256 \w+: allowed is download\.sha256, 0000"):
        download.main([params(tmp_path, folder=str(archive), sha256="0" * 64), str(tmp_path / "raw")])
    assert not (tmp_path / "raw").exists()
    download.main([params(tmp_path, folder=str(archive), sha256=sha256_of(archive)), str(tmp_path / "raw")])


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"folder": "nowhere"},
            "nowhere does not exist: set download.folder to the folder, zip or tar",
        ),
        ({"folder": "photos", "sha256": "0" * 64}, "download.sha256 is for a zip or tar, and photos is a folder"),
        ({"folder": "params.yaml"}, "params.yaml is not a complete zip or tar archive"),
        ({"folder": "photos/cat"}, "photos/cat holds no images in class folders"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, values, problem):
    write_files(tmp_path / "photos", pets(2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=problem) as caught:
        download.main([params(tmp_path, **values), "raw"])
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"photos", "params.yaml"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"folder": "../photos"}, "folder: '../photos'; allowed is a path in the project without .., or an absolute"),
        ({"folder": "~/photos"}, "folder: '~/photos'; allowed is a path"),
        ({"folder": "."}, "folder: '.'; allowed is a path"),
        ({"address": "https://example.org/a.zip"}, "with sha256: null; allowed is the archive's SHA-256"),
        ({"address": "ftp://example.org/a.zip", "sha256": "0" * 64}, "download.address: 'ftp://example.org/a.zip'"),
        ({"sha256": "0" * 63}, "download.sha256"),
        ({"classes": ["a", "a"]}, "each name once"),
        ({"classes": ["a"]}, "download.classes"),
        ({"classes": [f"class {number}" for number in range(1000)]}, "; allowed are 6,000, MLflow's limit of a param"),
        ({"groups": "patient"}, "groups: 'patient'; allowed is a level of folders such as 1 or -1, or null"),
        ({"groups": 1, "table": "a.csv"}, "groups: 1; allowed is a column of the table, or null"),
        ({"groups": 0}, "groups: 0; allowed is a level"),
    ],
)
def test_params_that_say_nothing_clear_are_named(tmp_path, values, problem):
    with pytest.raises(ValueError, match=r"params\.yaml has 1 problem:") as caught:
        load_params(Path(params(tmp_path, **values)))
    assert problem in str(caught.value)
