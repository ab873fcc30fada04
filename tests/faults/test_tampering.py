"""Outputs changed with size, time and mode preserved: DVC accepts them, and the stage that reads them refuses them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from classifier.networks.model_dir import build, read_model, read_models, write_model
from classifier.recording import run as recording_module
from classifier.recording.run import recording
from classifier.serving.pyfunc import ServedClassifier
from classifier.training.checkpoint import NO_WORK
from classifier.training.loop import train_one
from classifier.training.report import write_training
from stages import download, normalize
from stages.evaluate import evaluate
from tests.photos import pets, write_download_params, write_files
from tests.projects import Project
from tests.recorded import ROWS
from tests.samples import COSTS, ROOT, file_params, train_params, write_digits

EDITS: dict[str, Callable[[int], int]] = {
    "first byte": lambda size: 0,
    "middle": lambda size: size // 2,
    "last byte": lambda size: size - 1,
}


@contextmanager
def changed(path: Path, at: int) -> Iterator[None]:
    """Flip one bit and preserve size, time and mode."""
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


def outputs(folder: Path) -> list[tuple[Path, Callable[[], object]]]:
    """Every file that a later stage reads, and the part of that stage that reads it."""
    raw, data, model, training = (folder / name for name in ("raw", "normalized", "model", "training"))
    params_path = str(ROOT / "params.yaml")
    download.main([params_path, str(raw)])
    normalize.main([params_path, str(raw), str(folder / "other"), str(folder / "reports")])
    meta = write_digits(data)
    models = {seed: build(meta, seed) for seed in (0, 1)}
    write_model(model, models, 0, meta)
    write_training(training, {0: ROWS, 1: ROWS}, 0, COSTS)
    params = file_params()
    several = params.model_copy(update={"train": params.train.model_copy(update={"seeds": 2})})

    def train() -> None:
        train_one(data, 0, train_params(), torch.device("cpu"), lambda seed, row: None, NO_WORK)

    def evaluated() -> None:
        with recording("evaluate", several) as record:
            evaluate(several, data, model, training, folder / "reports", record)

    def normalized() -> None:
        normalize.main([params_path, str(raw), str(folder / "other"), str(folder / "reports")])

    photos, listed = write_files(folder / "photos", pets(8)), folder / "listed"
    of_photos = write_download_params(folder / "photos.yaml", folder=str(photos))
    download.main([of_photos, str(listed)])

    def decoded() -> None:
        normalize.main([of_photos, str(listed), str(folder / "other"), str(folder / "reports")])

    of_train = [data / name for name in ("train.safetensors", "validation.safetensors", "meta.json")]
    of_evaluate = [data / name for name in ("test.safetensors", "meta.json")]
    of_evaluate += [path for out in (model, training) for path in sorted(out.rglob("*")) if path.is_file()]
    return [
        *((path, normalized) for path in (raw / "digits.csv.gz", raw / "manifest.json")),
        *((path, decoded) for path in (listed / "images.parquet", listed / "manifest.json", photos / "cat/3.png")),
        *((path, train) for path in of_train),
        *((path, evaluated) for path in of_evaluate),
    ]


def test_every_stage_verifies_what_it_reads_and_names_the_file(attack, workspace, monkeypatch):
    row = attack("an output changed, size, time and mode kept")
    idle = ["cat"]  # in place of the recorder, which is not tested here
    monkeypatch.setattr(
        recording_module, "start_recorder", lambda journal: subprocess.Popen(idle, stdin=subprocess.PIPE)
    )
    found = outputs(workspace)
    for (path, read), edit in row.some([(each, edit) for each in found for edit in EDITS]):
        with row.case(f"{path.relative_to(workspace)}, {edit}"):
            with (
                changed(path, EDITS[edit](path.stat().st_size)),
                pytest.raises(ValueError, match=re.escape(path.name)) as caught,
            ):
                read()
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
        "replicas/seed-1.safetensors": read_models,
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


STAGES = {  # folder -> the stage that writes it, the stage that reads it, and its arguments
    "data/raw": ("download", "normalize", "params.yaml data/raw data/normalized reports/data"),
    "data/normalized": (
        *("normalize", "train"),
        "params.yaml data/normalized data/pretrained models/classifier reports/train",
    ),
}


@pytest.mark.slow
def test_dvc_trusts_what_the_next_stage_refuses(attack, tmp_path):
    """Files in the workspace and in the cache: DVC reports neither."""
    row = attack("DVC trusts a changed file, in the workspace and in its cache; the next stage does not")
    project = Project(tmp_path)
    project.run("dvc", "repro", "normalize")
    names = ["data/raw/digits.csv.gz", "data/raw/manifest.json"]
    names += [f"data/normalized/{name}" for name in ("train.safetensors", "validation.safetensors", "meta.json")]
    for name, edit in row.some([(name, edit) for name in names for edit in EDITS]):
        path = tmp_path / name
        cached, at = cached_file(project, path), EDITS[edit](path.stat().st_size)
        maker, reader, arguments = STAGES[str(Path(name).parent)]
        with row.case(f"workspace: {name}, {edit}"), changed(path, at):
            said = project.run("dvc", "status", maker)
            assert "up to date" in said, said
            assert_refused(project, name, maker, reader, arguments)
        with row.case(f"cache: {name}, {edit}"), changed(cached, at):
            path.unlink()
            project.run("dvc", "checkout", str(Path(name).parent))
            assert path.read_bytes() == cached.read_bytes(), "it was not restored"
            assert_refused(project, name, maker, reader, arguments)
        path.unlink(missing_ok=True)
        project.run("dvc", "checkout", str(Path(name).parent))
    row.verdict()


def cached_file(project: Project, path: Path) -> Path:
    """Path of an output file's content in DVC's cache."""
    cache = project.folder / ".dvc/cache/files/md5"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return cache / md5[:2] / md5[2:]


def assert_refused(project: Project, name: str, maker: str, reader: str, arguments: str) -> None:
    outputs = [project.folder / "models/classifier", project.folder / "reports/train"]
    said = project.run(sys.executable, "-m", f"stages.{reader}", *arguments.split(), check=False)
    assert project.returncode == 1, said
    assert re.search(rf"(?m)^{reader}: {re.escape(name)} .*run dvc repro -f {maker}$", said), said
    assert "Traceback" not in said
    assert not [path for path in outputs if path.exists()]
