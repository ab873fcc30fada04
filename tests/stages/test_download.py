from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from classifier.data.dataset import read_meta, read_split
from classifier.sources.catalog import Origin, SourceFile, origin
from stages import download, normalize
from tests import tiny_files
from tests.conftest import ROOT
from tests.loopback import closed_address, send
from tests.processes import HEAVY, run_without

TINY = tiny_files.mnist()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def params(folder: Path, dataset: str, mirror: str = "null") -> str:
    path = folder / "params.yaml"
    text = (ROOT / "params.yaml").read_text().replace("retries: 2", "retries: 0")
    path.write_text(text.replace("dataset: digits", f"dataset: {dataset}").replace("mirror: null", f"mirror: {mirror}"))
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tiny_origin(official: str, contents: dict[str, bytes] = TINY) -> Origin:
    files = (SourceFile(name, f"md5:{hashlib.md5(content).hexdigest()}") for name, content in contents.items())
    return Origin(tuple(files), (official,))


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def test_digits_come_from_scikit_learn_untouched_without_network_or_heavy_imports(tmp_path):
    closed = closed_address()  # neither an unreachable mirror nor a proxy makes a difference
    environment = {**os.environ, "DATA_MIRROR": closed, "https_proxy": closed, "http_proxy": closed}
    code = "import sys; from stages.download import main; main(sys.argv[1:])"
    printed = run_without(HEAVY, code, params(tmp_path, "digits"), tmp_path / "raw", env=environment)
    assert printed.endswith("digits: 1 files, 57,523 bytes\n")
    found = contents(tmp_path / "raw")
    assert set(found) == {"digits.csv.gz", "manifest.json"}
    assert found["digits.csv.gz"] == (origin("digits").installed / "digits.csv.gz").read_bytes()
    manifest = json.loads(found["manifest.json"])
    assert (manifest["dataset"], manifest["licence"]) == ("digits", "CC BY 4.0")
    assert manifest["files"] == [
        {
            "name": "digits.csv.gz",
            "source": origin("digits").address(origin("digits").files[0]),
            "bytes": 57523,
            "sha256": hashlib.sha256(found["digits.csv.gz"]).hexdigest(),
        }
    ]


def test_the_same_bytes_come_out_whatever_the_mirror_and_whatever_lay_there(tmp_path, monkeypatch, serve, capsys):
    official = closed_address()
    monkeypatch.setattr(download, "origin", lambda dataset: tiny_origin(official))
    folder = folder_of(tmp_path / "mirror", TINY)
    server = serve(lambda request: send(request, TINY[request.path.removeprefix("/")]))
    raw = tmp_path / "raw"

    download.main([params(tmp_path, "mnist", mirror=str(folder)), str(raw)])
    first = contents(raw)
    assert set(first) == {*TINY, "manifest.json"}
    assert {name: first[name] for name in TINY} == TINY
    assert official in first["manifest.json"].decode()
    assert str(tmp_path) not in first["manifest.json"].decode()

    (raw / "stale.gz").touch()
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"stale")
    monkeypatch.setenv("DATA_MIRROR", server.address)
    download.main([params(tmp_path, "mnist", mirror=str(folder)), str(raw)])
    assert contents(raw) == first
    assert server.asked == [f"/{name}" for name in TINY], "DATA_MIRROR goes first"
    assert f"{next(iter(TINY))} from {server.address}" in capsys.readouterr().out


def test_cifar10_from_a_server_to_pixels(tmp_path, monkeypatch, serve):
    """A small archive in the true format: its bytes arrive untouched, and its rows become the images of the splits."""
    archive = tiny_files.cifar10()
    server = serve(lambda request: send(request, archive[request.path.removeprefix("/")]))
    monkeypatch.setattr(download, "origin", lambda dataset: tiny_origin(server.address, archive))
    raw, normalized = tmp_path / "raw", tmp_path / "normalized"
    download.main([params(tmp_path, "cifar10"), str(raw)])
    assert {name: content for name, content in contents(raw).items() if name != "manifest.json"} == archive
    normalize.main([params(tmp_path, "cifar10"), str(raw), str(normalized), str(tmp_path / "reports")])
    meta = read_meta(normalized)
    test = read_split(normalized, "test", meta)
    images, labels = tiny_files.cifar_arrays()["test_batch"]
    assert np.array_equal(test.images, images.reshape(-1, 3, 32, 32))
    assert test.labels.tolist() == labels
    assert (meta.channels, meta.class_names[6], meta.counts["test"]) == (3, "frog", [2] * 10)


def test_official_mirrors_are_last(tmp_path, monkeypatch, serve):
    official = serve(lambda request: send(request, TINY[request.path.removeprefix("/")]))
    monkeypatch.setattr(download, "origin", lambda dataset: tiny_origin(official.address))
    some = dict(list(TINY.items())[:3])
    monkeypatch.setenv("DATA_MIRROR", str(folder_of(tmp_path / "mirror", some)))
    download.main([params(tmp_path, "mnist"), str(tmp_path / "raw")])
    assert official.asked == [f"/{name}" for name in TINY if name not in some]


def test_a_changed_scikit_learn_is_noticed_and_a_mirror_helps(tmp_path, monkeypatch, capsys):
    true = origin("digits")
    content = (true.installed / "digits.csv.gz").read_bytes()
    changed = folder_of(tmp_path / "changed", {"digits.csv.gz": content[:-1]})
    monkeypatch.setattr(download, "origin", lambda name: Origin(true.files, (closed_address(),), changed))
    with pytest.raises(OSError, match=r"digits\.csv\.gz could not be fetched \(.*changed: wrong checksum of 57,522"):
        download.main([params(tmp_path, "digits"), str(tmp_path / "raw")])
    assert not (tmp_path / "raw").exists()
    monkeypatch.setenv("DATA_MIRROR", str(folder_of(tmp_path / "good", {"digits.csv.gz": content})))
    download.main([params(tmp_path, "digits"), str(tmp_path / "raw")])
    assert contents(tmp_path / "raw")["digits.csv.gz"] == content


def test_a_failure_is_one_line_and_leaves_what_was_there(tmp_path):
    """A real process: the file of the data set is there, and wrong; the proxy keeps it off the network."""
    mirror = folder_of(tmp_path / "mirror", {"cifar-10-binary.tar.gz": b"<html>"})
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "manifest.json").write_text("of another data set")
    ended = subprocess.run(
        [sys.executable, "-m", "stages.download", params(tmp_path, "cifar10"), tmp_path / "raw"],
        cwd=ROOT,
        env={**os.environ, "DATA_MIRROR": str(mirror), "https_proxy": closed_address(), "NO_PROXY": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    *notes, line = ended.stderr.splitlines()
    assert line.startswith("download: cifar-10-binary.tar.gz could not be fetched (")
    assert f"{mirror}: it sent an HTML page instead of the file; https://www.cs.toronto.edu/~kriz/: " in line
    assert line.endswith("set DATA_MIRROR or download.mirror to an address or a folder that has it")
    assert len(notes) == 1
    assert contents(tmp_path / "raw") == {"manifest.json": b"of another data set"}
    assert {path.name for path in tmp_path.iterdir()} == {"mirror", "params.yaml", "raw"}


def test_a_wrong_command_line_says_what_is_expected():
    with pytest.raises(ValueError, match=r"expected PARAMS RAW, got 1: params\.yaml"):
        download.main(["params.yaml"])


@pytest.mark.mnist
def test_the_official_files_from_a_folder(tmp_path, monkeypatch, mnist_folder):
    monkeypatch.setenv("DATA_MIRROR", os.path.relpath(mnist_folder, ROOT))
    monkeypatch.setenv("DVC_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    download.main([params(tmp_path, "mnist"), str(tmp_path / "raw")])
    found = contents(tmp_path / "raw")
    manifest = json.loads(found.pop("manifest.json"))
    assert found == {name: (mnist_folder / name).read_bytes() for name in TINY}
    assert [file["source"] for file in manifest["files"]] == [
        f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}" for name in TINY
    ]
