"""Outputs that were changed with size, time and mode kept: DVC trusts them, the stage that reads them does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from classifier import recording as recording_module
from classifier.checkpoint import NO_WORK
from classifier.model_dir import build, read_model, read_replicas, write_model
from classifier.recording import recording
from classifier.replicas import train_one
from classifier.serving import ServedClassifier
from classifier.training_report import write_training
from stages import download, normalize
from stages.evaluate import evaluate
from tests.project import Project
from tests.recorded import ROWS
from tests.samples import ROOT, file_params, train_params, write_digits

EDITS: dict[str, Callable[[int], int]] = {
    "first byte": lambda size: 0,
    "middle": lambda size: size // 2,
    "last byte": lambda size: size - 1,
}


@contextmanager
def changed(path: Path, at: int) -> Iterator[None]:
    """One bit of one byte is another, and neither size nor time nor mode says so."""
    content, status = path.read_bytes(), path.stat()
    edited = bytearray(content)
    edited[at] ^= 1
    for version in (bytes(edited), content):
        path.chmod(0o644)
        path.write_bytes(version)
        path.chmod(status.st_mode)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        now = path.stat()
        assert (now.st_size, now.st_mtime_ns, now.st_mode) == (status.st_size, status.st_mtime_ns, status.st_mode)
        if version != content:
            yield


def outputs(folder: Path) -> dict[Path, Callable[[], object]]:
    """Every file that a later stage reads -> that stage, as far as it needs the file."""
    raw, data, model, training = (folder / name for name in ("raw", "normalized", "model", "training"))
    params_path = str(ROOT / "params.yaml")
    download.main([params_path, str(raw)])
    normalize.main([params_path, str(raw), str(folder / "other")])
    meta = write_digits(data)
    models = {seed: build(meta, seed) for seed in (0, 1)}
    write_model(model, models, 0, meta)
    write_training(training, {0: ROWS, 1: ROWS}, 0, 61706)
    params = file_params()
    several = params.model_copy(update={"train": params.train.model_copy(update={"replicas": 2})})

    def train() -> None:
        train_one(data, 0, train_params(), torch.device("cpu"), lambda row: None, NO_WORK)

    def evaluated() -> None:
        with recording("evaluate", several) as record:
            evaluate(several, data, model, training, folder / "reports", record)

    readers: dict[Path, Callable[[], object]] = {
        raw / "digits.csv.gz": lambda: normalize.main([params_path, str(raw), str(folder / "other")]),
        raw / "manifest.json": lambda: normalize.main([params_path, str(raw), str(folder / "other")]),
        data / "train.safetensors": train,
        data / "validation.safetensors": train,
        data / "meta.json": train,
        data / "test.safetensors": evaluated,
        model / "meta.json": evaluated,
        model / "weights.safetensors": evaluated,
    }
    readers |= dict.fromkeys((model / "replicas").iterdir(), evaluated)
    readers |= {path: evaluated for path in sorted(training.rglob("*")) if path.is_file()}
    return readers


def test_every_stage_verifies_what_it_reads_and_names_the_file(attack, workspace, monkeypatch):
    row = attack("an output changed, size, time and mode kept")
    nobody = ["cat"]  # in place of the recorder: what a stage says to MLflow is not what is tested
    monkeypatch.setattr(
        recording_module, "start_recorder", lambda journal: subprocess.Popen(nobody, stdin=subprocess.PIPE)
    )
    found = outputs(workspace)
    for path, edit in row.some([(path, edit) for path in found for edit in EDITS]):
        with row.case(f"{path.relative_to(workspace)}, {edit}"):
            with (
                changed(path, EDITS[edit](path.stat().st_size)),
                pytest.raises(ValueError, match=re.escape(path.name)) as caught,
            ):
                found[path]()
            assert re.search(r"run dvc repro -f (download|normalize|train)$", str(caught.value)), caught.value
            assert "\n" not in str(caught.value)
    row.verdict()


def test_a_served_model_verifies_its_files_too(attack, tmp_path):
    row = attack("a served model's file changed, size, time and mode kept")
    meta = write_digits(tmp_path / "data")
    folder = tmp_path / "model"
    write_model(folder, {0: build(meta), 1: build(meta, 1)}, 0, meta)
    ServedClassifier(folder)
    files = {
        "weights.safetensors": read_model,
        "meta.json": ServedClassifier,
        "replicas/seed-1.safetensors": read_replicas,
    }
    for name, read in files.items():
        path = folder / name
        for edit, at in EDITS.items():
            with (
                row.case(f"{name}, {edit}"),
                changed(path, at(path.stat().st_size)),
                pytest.raises(ValueError, match=re.escape(path.name)),
            ):
                read(folder)
    row.verdict()


def test_dvc_trusts_what_the_next_stage_refuses(attack, tmp_path):
    """A workspace file with its time kept, and a cached one: DVC has nothing to say of either."""
    row = attack("DVC trusts a changed file, in the workspace and in its cache; the next stage does not")
    project = Project(tmp_path)
    project.run("dvc", "repro", "download")
    path = tmp_path / "data/raw/digits.csv.gz"
    listing = json.loads(next(iter((tmp_path / ".dvc/cache/files/md5").rglob("*.dir"))).read_text())
    md5 = next(entry["md5"] for entry in listing if entry["relpath"] == path.name)
    cached = tmp_path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    with row.case("workspace"), changed(path, 1000):
        said = project.run("dvc", "repro", "normalize", check=False)
        assert "Stage 'download' didn't change, skipping" in said
        assert_refused(said, path)
    with row.case("cache"), changed(cached, 1000):
        path.unlink()
        project.run("dvc", "checkout", "data/raw")
        assert path.read_bytes() == cached.read_bytes(), "restored as good"
        command = (sys.executable, "-m", "stages.normalize", "params.yaml", "data/raw", "data/normalized")
        assert_refused(project.run(*command, check=False), path)
    row.verdict()


def assert_refused(said: str, path: Path) -> None:
    assert f"normalize: data/raw/{path.name} has 57,523 bytes and SHA-256" in said, said
    assert "run dvc repro -f download" in said
    assert "Traceback" not in said
    assert not (path.parents[1] / "normalized").exists()
