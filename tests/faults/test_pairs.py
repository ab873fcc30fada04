"""Two `dvc repro` at once, `dvc exp run` beside one: one waits or says who is at work; the bytes are the same."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.project import OUTPUTS, Project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("pairs"))
    project.edit_params("epochs: 20", "epochs: 1")
    project.commit("quick")
    project.repro()
    project.expected = project.hashes()
    project.commit("results")
    return project


def begin_anew(project: Project) -> None:
    for name in (*OUTPUTS, ".dvc/cache"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    (project.folder / "dvc.lock").unlink(missing_ok=True)


def start(project: Project, log: Path, *command: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=project.folder, env=project.variables, stdout=output, stderr=subprocess.STDOUT
        )


def test_two_at_once(project, attack, tmp_path):
    row = attack("two `dvc repro` at once, `dvc exp run --temp` beside one")
    kinds = [
        kind for _ in range(10) for kind in (("dvc", "repro"), ("dvc", "exp", "run", "--temp", "-S", "train.seed=1"))
    ]
    for number, second in enumerate(row.some(kinds)):
        with row.case(f"{number}: {' '.join(second)}"):
            begin_anew(project)
            if "exp" in second:
                project.git("checkout", "-q", "dvc.lock")
            logs = [tmp_path / f"{number}-{name}.log" for name in ("first", "second")]
            processes = [start(project, logs[0], "dvc", "repro")]
            time.sleep(row.random.uniform(0, 6))
            processes.append(start(project, logs[1], *second))
            statuses = [process.wait(timeout=300) for process in processes]
            for status, log in zip(statuses, logs, strict=True):
                said = log.read_text()
                assert status == 0 or "is busy" in said or "Unable to acquire lock" in said or "lock" in said, said
            assert 0 in statuses
            project.repro()  # what the one that gave way did not do
            assert project.hashes() == project.expected
            assert not list(project.folder.glob(".pipeline/checkpoints/*-*"))
    row.verdict()
