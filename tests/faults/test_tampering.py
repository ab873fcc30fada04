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

from classifier.data.dataset import SPLITS, DatasetMeta
from classifier.networks.model_dir import build, read_model, read_models, write_model
from classifier.recording import run as recording_module
from classifier.recording.run import recording
from classifier.serving.pyfunc import ServedClassifier
from classifier.training.checkpoint import NO_WORK
from classifier.training.loop import train_one
from classifier.training.report import write_training
from stages import download, normalize
from stages.evaluate import evaluate
from tests.folders import Normalized
from tests.photos import pets, write_download_params, write_files
from tests.projects import Project
from tests.recorded import ROWS
from tests.samples import COSTS, ROOT, file_params, train_params, write_digits

Read = Callable[[], object]  # reads a file as a stage does

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
        with path.open("r+b") as file:  # not truncated: a thread of the last case may still read it
            file.write(version)
        path.chmod(status.st_mode)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        now = path.stat()
        assert (now.st_size, now.st_mtime_ns, now.st_mode) == (status.st_size, status.st_mtime_ns, status.st_mode)
        if version != content:
            yield


def readers(folder: Path, data: Path, meta: DatasetMeta) -> tuple[Read, Read]:
    """The parts of train and evaluate that read `data` and, for the latter, a model and a report, written here."""
    model, training = folder / "model", folder / "training"
    write_model(model, {seed: build(meta, seed) for seed in (0, 1)}, 0, meta)
    write_training(training, {0: ROWS, 1: ROWS}, 0, COSTS)
    params = file_params()
    several = params.model_copy(update={"train": params.train.model_copy(update={"seeds": 2})})

    def train() -> None:
        train_one(data, 0, train_params(), torch.device("cpu"), lambda seed, row: None, NO_WORK)

    def evaluated() -> None:
        with recording("evaluate", several) as record:
            evaluate(several, data, model, training, folder / "reports", record)

    return train, evaluated


def outputs(folder: Path) -> list[tuple[Path, Read]]:
    """Every file that a later stage reads, and the part of that stage that reads it."""
    raw, data, model, training = (folder / name for name in ("raw", "normalized", "model", "training"))
    params_path = str(ROOT / "params.yaml")
    download.main([params_path, str(raw)])
    normalize.main([params_path, str(raw), str(folder / "other"), str(folder / "reports")])
    train, evaluated = readers(folder, data, write_digits(data))

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


@pytest.fixture
def unrecorded(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace, without the recorder, which is not tested here."""
    idle = ["cat"]
    monkeypatch.setattr(
        recording_module, "start_recorder", lambda journal: subprocess.Popen(idle, stdin=subprocess.PIPE)
    )
    return workspace


def assert_named(path: Path, edit: str, read: Read) -> None:
    """The reader refuses the edited file in one line that names it, and the stage that writes it."""
    with (
        changed(path, EDITS[edit](path.stat().st_size)),
        pytest.raises(ValueError, match=re.escape(path.name)) as caught,
    ):
        read()
    assert re.search(r"run dvc repro -f (download|normalize|train)$", str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_every_stage_verifies_what_it_reads_and_names_the_file(attack, unrecorded):
    row = attack("an output changed, size, time and mode kept")
    found = outputs(unrecorded)
    for (path, read), edit in row.some([(each, edit) for each in found for edit in EDITS]):
        with row.case(f"{path.relative_to(unrecorded)}, {edit}"):
            assert_named(path, edit, read)
    row.verdict()


@pytest.mark.parametrize("images", [4, 1000], ids=["in several files", "in one file"])
def test_splits_of_a_folder_and_their_table_are_verified_too(attack, unrecorded, monkeypatch, images):
    """All cases, since none computes anything unless a file is accepted. images: the most in a file."""
    row = attack(f"a split of a folder or its table changed, size, time and mode kept, at most {images} images a file")
    monkeypatch.setattr("classifier.data.writing.LARGEST_FILE", images * (3 * 32 * 32 + 8) + 1024)
    normalized = Normalized(unrecorded, write_files(unrecorded / "photos", pets(20)), validation_fraction=0.2)
    normalized.run()
    train, evaluated = readers(unrecorded, normalized.data, normalized.meta)
    readers_of = {"train": train, "validation": train, "test": evaluated, "images.parquet": evaluated}
    found = [(path, read) for name, read in readers_of.items() for path in sorted(normalized.data.glob(f"{name}*"))]
    assert len(found) == (1 + 3 + sum(-(-len(normalized.paths(name)) // 4) for name in SPLITS) if images == 4 else 4)
    for (path, read), edit in [(each, edit) for each in found for edit in EDITS]:
        with row.case(f"{path.name}, {edit}"):
            assert_named(path, edit, read)
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
