"""A train stage that is killed, on 100 images, and run again writes the bytes of an undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from classifier.project.files import sha256_of
from tests.samples import ROOT, write_digits

STEPS = 160  # 40 epochs of 4 batches


class Stage:
    """`stages.train` in a project of its own, with a checkpoint after each step; its journal waits for nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / ".dvc").mkdir(parents=True)
        write_digits(folder / "data/normalized")
        params = (ROOT / "params.yaml").read_text().replace("epochs: 20", "epochs: 40")
        (folder / "params.yaml").write_text(params.replace("checkpoint_every: 500", "checkpoint_every: 1"))

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stages.train", "params.yaml"]
        command += ["data/normalized", "models/classifier", "reports/train"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
        variables = {**kept, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(self.folder)}
        return subprocess.Popen(command, cwd=self.folder, env=variables, stdout=subprocess.DEVNULL)

    def checkpoints(self) -> int:
        """The number of the last step that has a checkpoint."""
        files = self.folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors")
        return max((int(path.name.partition("-")[0]) for path in files), default=0)

    def outputs(self) -> dict[str, str]:
        files = [path for out in ("models", "reports") for path in (self.folder / out).rglob("*") if path.is_file()]
        return {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in files}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    stage = Stage(tmp_path_factory.mktemp("undisturbed"))
    assert stage.start().wait(timeout=300) == 0
    outputs = stage.outputs()
    assert {"models/classifier/weights.safetensors", "reports/train/history.csv"} <= outputs.keys()
    return outputs


def test_train_killed_three_times_resumes_and_writes_the_same_bytes(tmp_path, expected):
    stage = Stage(tmp_path / "killed")
    for step in (1, STEPS // 2, STEPS * 3 // 4):
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
