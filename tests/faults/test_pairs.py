"""Concurrent `dvc repro` and experiments: one waits or names the other process; the bytes are the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.attack import limit
from tests.projects import OUTPUTS, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(limit(10_800))]
GIVES_WAY = (  # messages of the process that waits or stops
    r"'.+' is busy, it is being blocked by",  # DVC: a file that another process reads or writes
    r"Unable to acquire lock",  # DVC: the repository
    r"waiting for process \d+, which does the same in this folder",  # a stage of the pipeline
)
EXPERIMENT = ("-S", "train.seed=1")
KINDS = ("dvc repro", "dvc exp run --temp", "dvc repro", "dvc exp run --temp", "dvc queue start")


class Pair(Project):
    """A project of one short epoch; `.expected` are its outputs' hashes, `.lock` is its dvc.lock."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.edit_params("epochs: 20", "epochs: 1")
        self.commit("quick")
        self.repro()
        self.expected = self.hashes()
        self.commit("results")
        self.run("dvc", "exp", "run", "--temp", "--name", "alone", *EXPERIMENT)
        self.lock = self.lock_of("alone")

    def begin_anew(self) -> None:
        for name in (*OUTPUTS, ".dvc/cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def start(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.variables, stdout=output, stderr=subprocess.STDOUT
            )

    def lock_of(self, experiment: str) -> str:
        """The experiment's dvc.lock; empty if there is no such experiment."""
        found = self.git("for-each-ref", "--format=%(refname)", "refs/exps").split()
        references = [name for name in found if name.endswith(f"/{experiment}")]
        return self.git("show", f"{references[0]}:dvc.lock") if references else ""

    def wait_for_queue(self) -> str:
        """Wait until the queue is empty; returns the last `dvc queue status`."""
        end = time.monotonic() + 300
        while re.search(r"\b(Queued|Running)\b", status := self.run("dvc", "queue", "status")):
            assert time.monotonic() < end, status
            time.sleep(1)
        self.run("dvc", "queue", "stop")
        return status


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    project = Pair(tmp_path_factory.mktemp("pairs"))
    assert project.lock
    yield project
    project.run("dvc", "queue", "stop", "--kill", check=False)


def gave_way(said: str) -> bool:
    assert "Traceback" not in said, said
    return any(re.search(words, said) for words in GIVES_WAY)


def test_two_at_once(project: Pair, attack, tmp_path: Path):
    row = attack("two `dvc repro` at once, `dvc exp run --temp` or a queue's worker beside one")
    for number, kind in enumerate(row.some(KINDS * 4)):
        with row.case(f"{number}: {kind}"):
            project.begin_anew()
            name = f"pair-{number}"
            second = {
                "dvc repro": ("dvc", "repro"),
                "dvc exp run --temp": ("dvc", "exp", "run", "--temp", "--name", name, *EXPERIMENT),
                "dvc queue start": ("dvc", "queue", "start"),
            }[kind]
            if kind != "dvc repro":
                project.git("checkout", "-q", "dvc.lock")
            if kind == "dvc queue start":
                project.run("dvc", "exp", "run", "--queue", "--name", name, *EXPERIMENT)
            logs = [tmp_path / f"{number}-{which}.log" for which in ("first", "second")]
            processes = [project.start(logs[0], "dvc", "repro")]
            time.sleep(row.random.uniform(0, 6))
            processes.append(project.start(logs[1], *second))
            statuses = [process.wait(timeout=300) for process in processes]
            said = [log.read_text() for log in logs]
            if kind == "dvc queue start":
                project.wait_for_queue()
                said.append(project.run("dvc", "queue", "logs", name, check=False))
            for status, text in zip(statuses, said, strict=False):
                assert gave_way(text) or status == 0, text
            assert 0 in statuses
            if kind != "dvc repro":
                made = project.lock_of(name)
                assert made == project.lock or (not made and gave_way(said[-1])), f"{made}\n{said[-1]}"
            project.repro()  # whatever the process that stopped left undone
            assert project.hashes() == project.expected
            assert not list(project.folder.glob(".pipeline/checkpoints/*-*"))
    row.verdict()


@pytest.mark.parametrize("said", ["ERROR: dvc.lock is not valid", "failed to lock", "the lockfile is corrupted"])
def test_other_errors_about_locks_do_not_count_as_giving_way(said):
    assert not gave_way(said)
