"""A stage that is killed and run again writes the bytes of an undisturbed one: download, train and evaluate."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from classifier.project.files import sha256_of
from classifier.project.ownership import claim, release
from classifier.recording.deliverer import DELIVERY
from tests.faults.attack import Attack, cases, limit
from tests.folders import Normalized
from tests.photos import image, pets, write_download_params, write_files, write_tar
from tests.processes import words_of
from tests.samples import ROOT, file_params, write_digits

STEPS = 160  # 40 epochs of 4 batches
# Batch normalization, dropout, an average of the weights, the best epoch, MixUp.
EVERYTHING = {
    **{"train.network": "example:small", "train.keep.ema": 0.9, "train.keep.weights": "validation_loss"},
    **{"train.augment.mixup": 0.2, "train.augment.flip": 0.5, "train.augment.per": "image", "train.clip": 1.0},
}


PATHS = {
    "train": ["data/normalized", "data/pretrained", "models/classifier", "reports/train"],
    "evaluate": ["data/normalized", "models/classifier", "reports/train", "reports/evaluate"],
}


class Stage:
    """`stages.train` in a project of its own, with a checkpoint after each step; its journal waits for nobody.

    photos: in place of digits, as many of a folder, whose splits are in several files.
    """

    def __init__(self, folder: Path, *, photos: bool = False, **values: Any) -> None:
        self.folder = folder
        (folder / ".dvc").mkdir(parents=True)
        if photos:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("classifier.data.writing.LARGEST_FILE", 10 * (3 * 32 * 32 + 8) + 1024)
                Normalized(folder / "data", write_files(folder / "photos", pets(56))).run()
        else:
            write_digits(folder / "data/normalized")
        params = file_params().override({"train.epochs": 40, "train.checkpoint_every": 1, **values})
        (folder / "params.yaml").write_text(params.model_dump_json())  # JSON is YAML

    @property
    def variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        return {**kept, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(self.folder)}

    def start(self, name: str = "train") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"stages.{name}", "params.yaml", *PATHS[name]]
        with (self.folder / "stdout.txt").open("wb") as file:
            return subprocess.Popen(command, cwd=self.folder, env=self.variables, stdout=file)

    def checkpoints(self) -> int:
        """The number of the last step that has a checkpoint."""
        files = self.folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors")
        return max((int(path.name.partition("-")[0]) for path in files), default=0)

    def journals(self) -> list[Path]:
        return list(self.folder.glob(".pipeline/journal/*/events.jsonl"))

    def outputs(self) -> dict[str, str]:
        files = [path for out in ("models", "reports") for path in (self.folder / out).rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in files}


def outputs_of(stage: Stage) -> dict[str, str]:
    assert stage.start().wait(timeout=300) == 0
    outputs = stage.outputs()
    assert {"models/classifier/weights.safetensors", "reports/train/history.csv"} <= outputs.keys()
    return outputs


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outputs_of(Stage(tmp_path_factory.mktemp("undisturbed")))


def test_train_killed_halfway_resumes_and_writes_the_same_bytes(tmp_path, expected):
    kill_at([STEPS // 2], Stage(tmp_path / "killed"), expected)


def test_a_stage_killed_while_mlflow_stores_its_run_belongs_to_the_same_run(tmp_path):
    stage = Stage(tmp_path / "killed")
    for name in PATHS:
        delivery = claim(stage.folder / DELIVERY)  # so that the stage waits for it at its end
        assert delivery is not None
        process = stage.start(name)
        while not any('"do": "end"' in journal.read_text() for journal in stage.journals()):
            assert process.poll() is None, "the run ended"
            time.sleep(0.01)
        process.kill()
        process.wait()
        release(delivery)
        outputs = stage.outputs()
        assert stage.start(name).wait(timeout=300) == 0
        check_end(stage, outputs)
    assert re.search(r"^run digits lenet5 .*, id ", (stage.folder / "stdout.txt").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, {"photos": True}], ids=["default", "all kinds of state", "a folder of images"]
)
def test_train_killed_three_times_resumes_and_writes_the_same_bytes(tmp_path, values):
    expected = outputs_of(Stage(tmp_path / "undisturbed", **values))
    kill_at([1, STEPS // 2, STEPS * 3 // 4], Stage(tmp_path / "killed", **values), expected)


def kill_at(steps: list[int], stage: Stage, expected: dict[str, str]) -> None:
    for step in steps:
        process = stage.start()
        deadline = time.monotonic() + 300
        while stage.checkpoints() < step:
            assert process.poll() is None, f"it ended before step {step}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not stage.outputs()
        assert stage.checkpoints() >= step
    assert stage.start().wait(timeout=300) == 0
    assert stage.outputs() == expected
    assert not list(stage.folder.glob(".pipeline/checkpoints/*-*"))


def kill_one(stage: subprocess.Popen[bytes], choice: random.Random) -> bool:
    """Kill one of the processes that train, at random; False if the stage has ended. All of them end."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(stage.pid)
        training = [first, *(each for each in first.children() if "stages.train" in words_of(each))]
        victim = choice.choice(training)
        if stage.poll() is None:
            victim.kill()
            stage.wait(timeout=30)
            _, alive = psutil.wait_procs(training, timeout=10)
            assert not alive, "a process outlives its stage"
            assert stage.returncode != 0
            return True
    return False


def deliver_all(stage: Stage) -> None:
    """Wait until MLflow has all runs; recorders of killed stages go on by themselves."""
    command, end = [sys.executable, "-m", "classifier", "sync"], time.monotonic() + 60
    said: dict[str, Any] = {"cwd": stage.folder, "env": stage.variables, "capture_output": True, "text": True}
    while "everything is recorded" not in subprocess.run(command, check=False, **said).stdout:
        assert time.monotonic() < end, "not all is recorded"


def check_end(stage: Stage, expected: dict[str, str]) -> None:
    """The outputs are as expected, nothing is left to resume, and there is one run."""
    assert stage.outputs() == expected
    for work in ("checkpoints", "evaluations"):
        assert not list(stage.folder.glob(f".pipeline/{work}/*-*"))
    deliver_all(stage)
    assert runs(stage.folder) == ["FINISHED"]


def runs(folder: Path) -> list[str]:
    """The status of every run in MLflow."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        return [status for (status,) in store.execute("SELECT status FROM runs")]


@pytest.mark.slow
@pytest.mark.timeout(limit(3600))
def test_random_processes_of_a_training_with_two_are_killed(tmp_path, expected, attack: Callable[[str], Attack]):
    """At random times, its start included; about ten kills per training, which then ends with one run."""
    row = attack("SIGKILL of a random process of a training with two processes, at random times")
    wanted, kills, trainings = cases(100), 0, 0
    while kills < wanted:
        trainings += 1
        stage = Stage(tmp_path / str(trainings), **{"train.processes": 2})
        with row.case(f"training {trainings}"):
            process = stage.start()
            while kills < wanted and row.random.random() < 0.9:
                time.sleep(row.random.uniform(0, 5))
                if not kill_one(process, row.random):
                    break
                kills += 1
                process = stage.start()
            assert process.wait(timeout=300) == 0
            check_end(stage, expected)
        assert trainings < wanted + 20, "trainings end before they are killed"
        shutil.rmtree(stage.folder)
    row.run = kills
    row.verdict()


@pytest.mark.slow
@pytest.mark.timeout(limit(3600))
def test_train_and_evaluate_are_killed_on_a_folder_of_images(tmp_path, attack: Callable[[str], Attack]):
    """At random times, their start included; up to three kills per stage, which then ends with one run."""
    row = attack("SIGKILL of train and of evaluate on a folder of images, at random times")
    wanted, kills, projects = cases(30), 0, 0
    whole, seconds = Stage(tmp_path / "undisturbed", photos=True), {}
    for name in PATHS:
        began = time.monotonic()
        assert whole.start(name).wait(timeout=300) == 0
        seconds[name] = time.monotonic() - began
    while kills < wanted:
        projects += 1
        stage = Stage(tmp_path / str(projects), photos=True)
        with row.case(f"project {projects}"):
            for name in PATHS:
                for left in (3, 2, 1, 0):
                    process = stage.start(name)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(row.random.uniform(0, seconds[name]) if left else 300)
                    if process.poll() is not None:
                        break
                    process.kill()
                    process.wait()
                    kills += 1
                assert process.returncode == 0
            check_end(stage, whole.outputs())
        assert projects < wanted + 20, "stages end before they are killed"
        shutil.rmtree(stage.folder)
    row.run = kills
    row.verdict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_download_killed_while_it_lists_images_leaves_nothing_and_writes_the_same_bytes(tmp_path, kind):
    files = {f"{name}/{number}.png": image(number) for name in ("cat", "dog") for number in range(1500)}
    source = tmp_path / "photos"
    write_files(source, files) if kind == "folder" else write_tar(source, files, "w:gz")
    write_download_params(tmp_path / "params.yaml", folder=str(source))
    command = [sys.executable, "-m", "stages.download", "params.yaml"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    variables["PYTHONPATH"] = str(ROOT)

    def start(output: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, output], cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL)

    assert start("expected/raw").wait(timeout=300) == 0
    for delay_s in (0.0, 0.1, 0.3):
        process = start("data/raw")
        while not (tmp_path / "data/.raw.new").exists():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(delay_s)
        workers = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        assert not (tmp_path / "data/raw").exists()
        assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert start("data/raw").wait(timeout=300) == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]
    raws = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("data/raw", "expected/raw")
    ]
    assert raws[0] == raws[1]
