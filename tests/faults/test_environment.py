"""Unusual machines and shells: the whole pipeline works there and gives the same bytes."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML

from classifier.project.files import sha256_of
from classifier.training.history import read_history
from tests.faults.attack import PERCENT
from tests.projects import Project

CLOCK = '''"""Time stands still for a while after the start, then is a day earlier."""
import time

_time, _time_ns, _start = time.time, time.time_ns, time.time()
time.time = lambda: _time() - 86400 * (_time() > _start + 1)
time.time_ns = lambda: _time_ns() - 86400 * 10**9 * (_time() > _start + 1)
'''
SHORT = {"epochs": 1, "checkpoint_every": 5}
WHOLE = PERCENT > 10  # run the whole pipeline; `make test` runs the first two stages, to save 40 s
HASHED = ("data/raw", "data/normalized", "models/classifier", "reports/train", "reports/evaluate")


def foreign_locale() -> str:
    """A locale of this machine other than English and C; C if there is none, as in a minimal container."""
    if not shutil.which("locale"):
        return "C"
    listed = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.split()
    return next((name for name in listed if not name.startswith(("C", "POSIX", "en_"))), "C")


LOCALE = foreign_locale()


@dataclass
class Shell:
    """What a condition changes before the pipeline runs in `folder`."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    umask: int = 0o022
    pipe: bool = False  # standard output is a pipe of 4 KiB with a slow reader


def clock_jumps_back(shell: Shell) -> None:
    place = shell.folder.with_name("clock")
    place.mkdir()
    (place / "sitecustomize.py").write_text(CLOCK)
    shell.variables["PYTHONPATH"] = str(place)
    for path in shell.folder.rglob("*.py"):  # written tomorrow
        os.utime(path, (time.time() + 86400,) * 2)


def other_time_zone(shell: Shell) -> None:
    shell.variables["TZ"] = "Pacific/Kiritimati"


def other_locale(shell: Shell) -> None:
    """C is ASCII, which Python treats as UTF-8 (PEP 540)."""
    shell.variables |= {"LC_ALL": LOCALE, "LANG": "tr_TR.UTF-8"}


def strict_umask(shell: Shell) -> None:
    shell.umask = 0o077


def read_only_home(shell: Shell) -> None:
    """/proc, where even root cannot create files."""
    shell.variables["HOME"] = "/proc"


def odd_path(shell: Shell) -> None:
    folder = shell.folder.with_name("Größe ñ 数 'a' $HOME `x`")
    shell.folder.rename(folder)
    shell.folder = folder


def small_pipe(shell: Shell) -> None:
    shell.pipe = True


CONDITIONS: dict[str, Callable[[Shell], None]] = {
    "the clock jumps back": clock_jumps_back,
    "another time zone": other_time_zone,
    "another locale": other_locale,
    "umask 077": strict_umask,
    "a read-only home": read_only_home,
    "a path with spaces, quotes and non-ASCII characters": odd_path,
    "standard output a pipe of 4 KiB": small_pipe,
}


def test_the_pipeline_works_there_with_the_same_bytes(attack, tmp_path):
    """All conditions together; at more than 10% of the cases also single ones, at 100% each of them."""
    row = attack(f"clock, time zone, locale {LOCALE}, umask, home, path, standard output")
    expected = outcome(tmp_path / "plain", [])
    for number, name in enumerate(["all together", *(row.some(list(CONDITIONS)) if WHOLE else [])]):
        with row.case(name):
            chosen = list(CONDITIONS.values()) if name == "all together" else [CONDITIONS[name]]
            assert outcome(tmp_path / f"{number}", chosen) == expected
    row.verdict()


def outcome(place: Path, conditions: list[Callable[[Shell], None]]) -> dict[str, str]:
    """Run the pipeline in a new project under these conditions and return the hashes of its outputs."""
    place.mkdir()
    shell = Shell(Project(place / "project").folder)
    shorten(shell.folder)
    for condition in conditions:
        condition(shell)
    status, said = run(shell, *([] if WHOLE else ["normalize"]))
    assert status == 0, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    assert re.search(r"digits: accuracy \d\d" if WHOLE else "images: 1,295 train", said), said[-3000:]
    written = [path for output in HASHED for path in (shell.folder / output).rglob("*") if path.is_file()]
    assert not [path for path in written if path.stat().st_mode & 0o777 & shell.umask]
    if WHOLE:
        assert_recorded(shell.folder)
    found = hashes(shell.folder)
    shutil.rmtree(place)
    return found


def assert_recorded(folder: Path) -> None:
    """MLflow has exactly one run, finished, with all its metrics."""
    assert not list(folder.glob(".pipeline/journal/*-*"))
    with closing(sqlite3.connect(folder / "mlflow.db")) as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        steps = store.execute("SELECT step FROM metrics WHERE key = 'train/learning_rate' ORDER BY step").fetchall()
        assert [step for (step,) in steps] == [row.step for row in read_history(folder / "reports/train/history.csv")]
        assert store.execute("SELECT value FROM metrics WHERE key = 'test/accuracy'").fetchall()


def shorten(folder: Path) -> None:
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in SHORT.items():
        text = re.sub(rf"(?m)^  {key}: \d+", f"  {key}: {value}", text)
    path.write_text(text, encoding="utf-8")


def run(shell: Shell, *target: str) -> tuple[int, str]:
    """Run `dvc repro` there; returns its exit status and output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "LC_"))}
    variables = kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"} | shell.variables
    reading, writing = os.pipe()
    if shell.pipe:
        fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ, which Python defines on Linux only
    command = ["dvc", "repro", *target]
    process = subprocess.Popen(
        command, cwd=shell.folder, env=variables, stdout=writing, stderr=writing, umask=shell.umask
    )
    os.close(writing)
    said = b""
    with os.fdopen(reading, "rb", buffering=0) as file:
        while chunk := file.read(512 if shell.pipe else 65_536):
            said += chunk
            time.sleep(0.02 if shell.pipe else 0)
    return process.wait(), said.decode(errors="replace")


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of all outputs that must be byte-identical; dvc.lock holds them too."""
    lock = YAML(typ="safe").load(folder / "dvc.lock")
    assert set(lock["stages"]) == {"download", "normalize", *(("pretrained", "train", "evaluate") if WHOLE else ())}
    paths = (path for output in HASHED for path in sorted((folder / output).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in paths}
