"""`dvc repro` with all its processes, DVC only or a stage only is killed at any time; a rerun gives the same bytes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from classifier.recording.run import RATE, ROW_METRICS
from classifier.recording.tags import KEY_TAG, WEIGHTS_TAG
from classifier.repository.dvc import reads
from tests.faults.attack import PERCENT, limit
from tests.photos import pets, write_files
from tests.projects import OUTPUTS, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(limit(21_600))]
DETERMINED = ["data/raw", "data/normalized", "models/classifier", "reports/train", "reports/evaluate"]


class Victim(Project):
    """Two short epochs with a checkpoint after each step, on digits or on photos in the folder images/."""

    def __init__(self, folder: Path, *, photos: bool = False) -> None:
        super().__init__(folder)
        self.groups: list[int] = []  # process groups of everything that was started
        if photos:
            write_files(folder / "images", pets(100))
            self.edit_params("dataset: digits", "dataset: folder")
        self.edit_params("epochs: 20", "epochs: 2")
        self.edit_params("checkpoint_every: 500", "checkpoint_every: 1")
        self.commit("quick")

    def begin_anew(self) -> None:
        """Remove the outputs and DVC's cache; keep the store, the journals and DVC's temporary files."""
        for name in (*OUTPUTS, ".dvc/cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start what `make repro` runs, in its own process group."""
        output = (self.folder / "output.log").open("ab")
        with output:
            process = subprocess.Popen(
                ["sh", "-c", f"{sys.executable} -m classifier repair && exec dvc repro"],
                cwd=self.folder,
                env=self.variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.groups.append(process.pid)
        return process

    def end(self) -> None:
        """Run it again; this time it must succeed."""
        assert self.start().wait(timeout=300) == 0, self.log()[-3000:]

    def stop(self) -> None:
        """Kill everything that a failed case left running."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def recorders(self) -> list[psutil.Process]:
        """Processes that deliver a journal of this project."""
        return [
            process
            for process, words in commands()
            if "classifier.tracking.recorder" in words and words[-1].startswith(str(self.folder))
        ]

    def stage(self, process: subprocess.Popen[bytes]) -> psutil.Process | None:
        """The running stage or the next one; None if the pipeline ends first."""
        while process.poll() is None:
            for found, words in commands():
                if any(word.startswith("stages.") for word in words) and "-c" not in words:
                    with suppress(ProcessLookupError):
                        if os.getpgid(found.pid) == process.pid:
                            return found
        return None

    def log(self) -> str:
        return (self.folder / "output.log").read_text()


def commands() -> list[tuple[psutil.Process, list[str]]]:
    """All processes with their command lines."""
    return [(process, process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with undisturbed(Victim(tmp_path_factory.mktemp("victim"))) as victim:
        yield victim


@pytest.fixture(scope="module")
def victim_with_photos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with undisturbed(Victim(tmp_path_factory.mktemp("victim"), photos=True)) as victim:
        yield victim


ON_PHOTOS = {"victim": "", "victim_with_photos": ", on a folder of images"}  # fixture -> end of a row's name


@contextmanager
def undisturbed(victim: Victim) -> Iterator[Victim]:
    """Reproduce it once without a kill, for `.expected` and its duration; stop all of its processes at the end."""
    begin = time.monotonic()
    victim.end()
    victim.seconds = time.monotonic() - begin
    victim.expected = victim.hashes()
    assert {Path(name).parts[0] for name in victim.expected} == {"data", "models", "reports"}
    yield victim
    victim.stop()


def checkpoint_is_written(project: Path) -> bool:
    return any(project.glob(".pipeline/checkpoints/*/seed-*/.*.tmp"))


def mlflow_is_written(project: Path) -> bool:
    """SQLite keeps a rollback journal next to the database until the transaction ends."""
    return (project / "mlflow.db-journal").exists()


def lock_is_written(project: Path) -> bool:
    """DVC opens it for writing, which empties it, and then writes it again."""
    try:
        return (project / "dvc.lock").stat().st_size == 0
    except FileNotFoundError:
        return False


def lock_is_cut_off(project: Path) -> bool:
    return (project / "dvc.lock").exists() and not reads(project / "dvc.lock")


MOMENTS = {  # name -> whether a write is in progress, and whether one was interrupted
    "checkpoint": (checkpoint_is_written, checkpoint_is_written),
    "MLflow": (mlflow_is_written, mlflow_is_written),
    "dvc.lock": (lock_is_written, lock_is_cut_off),
}


def kill(process: subprocess.Popen[bytes], recorders: list[psutil.Process]) -> None:
    """Kill everything at once and wait until it has ended; recorders do not belong to the process group."""
    for recorder in recorders:
        with suppress(psutil.NoSuchProcess):
            recorder.kill()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(recorders)
    for other, _ in commands():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                other.wait(10)


def kill_inside(victim: Victim, process: subprocess.Popen[bytes], moment: str, skip: int) -> bool:
    """Kill at the `skip` + 1-th such moment; False if it never came or the kill interrupted no write."""
    going_on, broken_off = MOMENTS[moment]
    recorders: list[psutil.Process] = []
    over = threading.Event()

    def look_for_recorders() -> None:  # in advance: this takes longer than the moment lasts
        while not over.wait(0.1):
            recorders[:] = victim.recorders()

    if moment == "MLflow":
        threading.Thread(target=look_for_recorders, daemon=True).start()
    inside = False
    try:
        while process.poll() is None:
            was_inside, inside = inside, going_on(victim.folder)
            if inside and not was_inside:
                if not skip:
                    kill(process, list(recorders))
                    if moment == "MLflow":
                        kill_recorders(victim)  # those started since
                    return broken_off(victim.folder)
                skip -= 1
    finally:
        over.set()
    return False


def kill_recorders(victim: Victim) -> None:
    while found := victim.recorders():
        for recorder in found:
            with suppress(psutil.NoSuchProcess):
                recorder.kill()
        psutil.wait_procs(found)


def check(victim: Victim) -> None:
    """The bytes are as expected, no temporary files are left, and MLflow has one complete run per training."""
    assert victim.hashes() == victim.expected
    left = [path for path in (victim.folder / ".pipeline").rglob("*") if path.name.endswith(".tmp")]
    left += (victim.folder / ".pipeline/checkpoints").glob("*-*")
    left += [path for out in DETERMINED for path in (victim.folder / out).parent.glob(".*.new")]
    assert not left
    end = time.monotonic() + 60
    while victim.recorders():  # recorders of killed stages
        assert time.monotonic() < end, "a recorder does not end"
        time.sleep(0.1)
    assert not [path for word in ("removed", "old") for path in victim.folder.rglob(f".*.{word}")]
    assert "everything is recorded" in victim.run(sys.executable, "-m", "classifier", "sync")
    doubled = victim.query("SELECT key FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1 LIMIT 5")
    assert not [key for (key,) in doubled if not key.startswith("system/")]
    assert not victim.query("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")
    # Training resumes in the run that it started: no run is left without a model, and none is duplicated.
    models = f"SELECT run_uuid FROM tags WHERE key = '{WEIGHTS_TAG}'"
    assert not victim.query(f"SELECT run_uuid, status FROM runs WHERE run_uuid NOT IN ({models})")
    assert not victim.query(f"SELECT value FROM tags WHERE key = '{KEY_TAG}' GROUP BY value HAVING count(*) > 1")
    newest = "SELECT run_uuid FROM runs WHERE status = 'FINISHED' ORDER BY end_time DESC LIMIT 1"
    with (victim.folder / "reports/train/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for column, name in ROW_METRICS.items():
        found = victim.query(f"SELECT step, value FROM metrics WHERE key = '{name}' AND run_uuid = ({newest})")
        values = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        digits = 6 if name == RATE else 17  # the learning rate is recorded without its rounding noise
        assert sorted(found) == [(step, float(f"{value:.{digits}g}")) for step, value in values], name
    assert victim.query(f"SELECT value FROM metrics WHERE key = 'test/accuracy' AND run_uuid = ({newest})")


@pytest.mark.parametrize(("data", "full"), [("victim", 70), ("victim_with_photos", 30)])
def test_killed_at_random_times(request, data, full, attack):
    """About six kills per run of the pipeline; every third also kills the recorder.

    Of four kills, two are of everything, one of DVC only, whose stage continues without it, and one of the stage only.
    """
    victim = request.getfixturevalue(data)
    what = "`dvc repro` and all it started, of DVC alone, of the stage alone"
    row = attack(f"SIGKILL at random times: of {what}{ON_PHOTOS[data]}")
    kills = max(1, round(full * PERCENT / 100))
    number = 0
    while number < kills:
        with row.case(f"kill {number}"):
            victim.begin_anew()
            while number < kills and row.random.random() < 0.85:
                process = victim.start()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(row.random.uniform(0, victim.seconds))
                alone = {2: "DVC", 3: "stage"}.get(number % 4)
                stage = victim.stage(process) if alone else None
                if process.poll() is not None:
                    break  # it ended first
                number += 1
                if alone == "DVC":
                    process.kill()
                    process.wait()
                elif alone == "stage" and stage:
                    with suppress(psutil.NoSuchProcess):
                        stage.kill()
                    process.wait(timeout=300)
                else:
                    kill(process, victim.recorders() if number % 3 == 0 else [])
            victim.end()
            check(victim)
        if row.problems:
            victim.stop()
    row.run = number  # kills, not runs
    row.verdict()


def test_a_stage_that_outlives_dvc_is_waited_for(victim):
    """Only DVC is killed during training; a rerun trains only after the earlier stage has ended."""
    victim.begin_anew()
    process = victim.start()
    while not list(victim.folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors")):
        assert process.poll() is None, victim.log()[-3000:]
        time.sleep(0.001)
    stage = victim.stage(process)
    assert stage
    process.kill()
    process.wait()
    stage.suspend()
    said = len(victim.log())
    again = victim.start()
    while f"waiting for process {stage.pid}, which does the same in this folder" not in victim.log()[said:]:
        assert again.poll() is None, victim.log()[said:]
        time.sleep(0.01)
    stage.resume()
    assert again.wait(timeout=300) == 0, victim.log()[said:]
    check(victim)


@pytest.mark.parametrize(
    ("data", "moment"), [*(("victim", moment) for moment in MOMENTS), ("victim_with_photos", "checkpoint")]
)
def test_killed_inside_a_write(request, data, attack, moment):
    """Counts only kills that interrupted a write."""
    victim = request.getfixturevalue(data)
    row = attack(f"SIGKILL inside the writing of {moment}{ON_PHOTOS[data]}")
    kills = max(1, round(10 * PERCENT / 100))
    times: Counter[bool] = Counter()
    while times[True] < kills and not row.problems:
        with row.case(f"{moment} {times[True]}"):
            victim.begin_anew()
            skip = row.random.randrange(3 if moment == "dvc.lock" else 8)
            times[kill_inside(victim, victim.start(), moment, skip)] += 1
            victim.end()
            check(victim)
        assert times[False] < 20, f"no write of {moment} was interrupted"
    row.run = times[True]
    row.verdict()


def venv_of(folder: Path) -> None:
    """Create what `make setup` would, from this interpreter's environment."""
    (folder / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv/.installed").write_text(f"{folder}\n")


def test_make_repro_repairs_what_a_killed_dvc_left_and_says_so(victim):
    """The real `make repro`, with truncated dvc.lock files and a lock whose process id was reused."""
    victim.begin_anew()
    victim.end()
    venv_of(victim.folder)
    lock, rwlock = (victim.folder / name for name in ("dvc.lock", ".dvc/tmp/rwlock"))
    whole = lock.read_bytes()
    half = next(whole[:end] for end in range(len(whole) // 2, 0, -1) if not_whole(lock, whole[:end]))
    held = {str(victim.folder / "data/raw"): {"pid": os.getppid(), "cmd": "/bin/dvc repro"}}
    anew = "dvc.lock was truncated when DVC was killed: removed, dvc repro writes it again"
    committed = "dvc.lock was truncated when DVC was killed: restored from the last commit"
    stale = f".dvc/tmp/rwlock was held by process {os.getppid()}, which is gone: removed"
    assert "dvc.lock" in victim.run("dvc", "repro", check=False)
    assert victim.returncode != 0, "dvc repro alone succeeds"
    for content, line in ((half, anew), (b"", committed), (half, committed), (whole + b"stages: [\0", committed)):
        if line == committed and not victim.git("ls-files", "dvc.lock"):
            victim.commit("results")
        lock.write_bytes(content)
        rwlock.write_text(json.dumps({"write": held, "read": {}}))
        said = victim.run("make", "repro")
        assert said.splitlines()[:2] == [line, stale], said
        assert "test accuracy" in said
        assert victim.hashes() == victim.expected
        assert lock.read_bytes() == whole


def not_whole(lock: Path, content: bytes) -> bool:
    lock.write_bytes(content)
    return lock_is_cut_off(lock.parent)
