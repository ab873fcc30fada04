"""`dvc repro` is killed with everything it started, at any moment; begun again it ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.faults.attack import PERCENT
from tests.project import OUTPUTS, Project

DETERMINED = ["data/raw", "data/normalized", "models/classifier", "reports/train", "reports/evaluate"]


class Victim(Project):
    """Two short epochs with a checkpoint after each step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.edit_params("epochs: 20", "epochs: 2")
        self.edit_params("checkpoint_every: 500", "checkpoint_every: 1")
        self.commit("quick")

    def begin_anew(self) -> None:
        """Without outputs and DVC's cache; the store, the journals and what DVC noted for itself stay."""
        for name in (*OUTPUTS, ".dvc/cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """As `make repro` does, in a process group of its own."""
        output = (self.folder / "output.log").open("ab")
        with output:
            return subprocess.Popen(
                ["sh", "-c", f"{sys.executable} -m commands.mend && exec dvc repro"],
                cwd=self.folder,
                env=self.variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def recorders(self) -> list[psutil.Process]:
        """Processes that deliver a journal of this project."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "classifier.recorder" in words and words[-1].startswith(str(self.folder)):
                found.append(process)
        return found

    def log(self) -> str:
        return (self.folder / "output.log").read_text()


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """Reproduced once without any kill: `.expected` and the seconds that it took."""
    victim = Victim(tmp_path_factory.mktemp("victim"))
    begin = time.monotonic()
    assert victim.start().wait(timeout=300) == 0, victim.log()
    victim.seconds = time.monotonic() - begin
    victim.expected = victim.hashes()
    assert {Path(name).parts[0] for name in victim.expected} == {"data", "models", "reports"}
    return victim


def checkpoint_is_written(project: Path, state: dict[str, float]) -> bool:
    return any(project.glob(".pipeline/checkpoints/*/seed-*/.*.tmp"))


def mlflow_is_written(project: Path, state: dict[str, float]) -> bool:
    return (project / "mlflow.db-journal").exists() or (project / "mlflow.db-wal").exists()


def lock_is_written(project: Path, state: dict[str, float]) -> bool:
    """DVC opens it for writing, which empties it, and fills it again."""
    try:
        size = (project / "dvc.lock").stat().st_size
    except FileNotFoundError:
        return False
    before, state["size"] = state.get("size", 0), size
    return size == 0 or size < before


MOMENTS = {
    "checkpoint": checkpoint_is_written,
    "MLflow": mlflow_is_written,
    "dvc.lock": lock_is_written,
}


def kill(victim: Victim, process: subprocess.Popen[bytes], *, recorders: bool) -> None:
    for target in victim.recorders() if recorders else []:
        target.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_at(victim: Victim, process: subprocess.Popen[bytes], moment: str, skip: int) -> bool:
    """Kill when the moment comes for the time `skip` + 1; False when it did not come before the end."""
    state: dict[str, float] = {}
    inside = False
    while process.poll() is None:
        was_inside, inside = inside, MOMENTS[moment](victim.folder, state)
        if inside and not was_inside:
            if not skip:
                kill(victim, process, recorders=moment == "MLflow")
                return True
            skip -= 1
    return False


def check(victim: Victim) -> None:
    """The bytes are the expected ones, nothing temporary is left, and MLflow has one whole run of them."""
    assert victim.hashes() == victim.expected
    left = [path for path in (victim.folder / ".pipeline").rglob("*") if path.name.endswith(".tmp")]
    left += (victim.folder / ".pipeline/checkpoints").glob("*-*")
    left += [path for out in DETERMINED for path in (victim.folder / out).parent.glob(".*.new")]
    assert not left
    end = time.monotonic() + 60
    while victim.recorders():  # of stages that were killed
        assert time.monotonic() < end, "a recorder goes on for ever"
        time.sleep(0.1)
    assert not [path for word in ("removed", "old") for path in victim.folder.rglob(f".*.{word}")]
    assert "nothing waits" in victim.run(sys.executable, "-m", "commands.sync")
    doubled = victim.query("SELECT key FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1 LIMIT 5")
    assert not [key for (key,) in doubled if not key.startswith("system/")]
    assert not victim.query("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")
    newest = "SELECT run_uuid FROM runs WHERE status = 'FINISHED' ORDER BY end_time DESC LIMIT 1"
    rows = (victim.folder / "reports/train/history.csv").read_text().splitlines()[1:]
    steps = victim.query(f"SELECT step FROM metrics WHERE key = 'train/learning_rate' AND run_uuid = ({newest})")
    assert sorted(int(step) for (step,) in steps) == [int(row.split(",")[0]) for row in rows]
    assert victim.query(f"SELECT value FROM metrics WHERE key = 'test/accuracy' AND run_uuid = ({newest})")


def end(victim: Victim) -> None:
    assert victim.start().wait(timeout=300) == 0, victim.log()[-3000:]


def test_killed_at_random_times(victim, attack):
    """Six or so fall into each run of the pipeline; a recorder dies with every third."""
    row = attack("SIGKILL of `dvc repro` and all it started, at random times")
    kills = max(1, round(70 * PERCENT / 100))
    number = 0
    while number < kills:
        with row.case(f"kill {number}"):
            victim.begin_anew()
            while number < kills and row.random.random() < 0.85:
                process = victim.start()
                time.sleep(row.random.uniform(0, victim.seconds))
                if process.poll() is None:
                    number += 1
                    kill(victim, process, recorders=number % 3 == 0)
            end(victim)
            check(victim)
    row.run = number  # kills, not runs
    row.verdict()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_inside_a_write(victim, attack, moment):
    row = attack(f"SIGKILL inside the writing of {moment}")
    kills = max(1, round(10 * PERCENT / 100))
    times: Counter[int] = Counter()
    number = 0
    while number < kills:
        with row.case(f"{moment} {number}"):
            victim.begin_anew()
            skip = row.random.randrange(3 if moment == "dvc.lock" else 8)
            hit = kill_at(victim, victim.start(), moment, skip)
            times[hit] += 1
            number += hit
            end(victim)
            check(victim)
        assert times[False] < 20, f"the moment never came: {moment}"
        if row.problems:
            break
    row.run = number
    row.verdict()
