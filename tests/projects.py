"""A copy of this repository as a user has it, with real git and DVC and the environment of a fresh shell."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Self

from classifier.arithmetic import CAPS
from classifier.project.files import sha256_of
from tests.samples import ROOT

OUTPUTS = {
    "data/raw": {"digits.csv.gz", "manifest.json"},
    "data/normalized": {"train.safetensors", "validation.safetensors", "test.safetensors", "meta.json"},
    "reports/data": {
        *("summary.json", "classes.csv", "sizes.csv", "modes.csv", "channels.csv", "problems.csv", "duplicates.csv"),
        *("classes.png", "duplicates.png"),
    },
    "data/pretrained": {"manifest.json"},
    "models/classifier": {"weights.safetensors", "meta.json"},
    "reports/train": {
        *("history.csv", "layers.csv", "metrics.json", "summary.json", "augmented.png", "manifest.json"),
    },
    "reports/evaluate": {
        *("metrics.json", "summary.json", "report.html", "per_class.csv", "confusion.csv", "confusions.csv"),
        *("calibration.csv", "misclassified.csv", "robustness.csv", "predictions.parquet", "misclassified.png"),
        *("confusion.png", "calibration.png", "curves.png", "robustness.png"),
    },
}


# MAKE and MFLAGS are set by `make test`, the settings of portable arithmetic by the tests; stages set them themselves.
FOREIGN = ("DVC_", "MLFLOW_", "MAKE", "MFLAGS", *CAPS)


class Project:
    """A committed copy of this repository's working tree. Commands run with the environment of a fresh shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.git("init", "-q", "-b", "main")
        self.commit("start")

    @classmethod
    def at(cls, folder: Path, output: str = "") -> Self:
        """The project that another process created in `folder`; `output` is that of its last `dvc repro`."""
        project = cls.__new__(cls)
        project.folder, project.output = folder, output
        return project

    def copy(self, folder: Path) -> Self:
        """Copy the project with all its outputs to `folder`."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        copied = copy(self)
        copied.folder = folder
        return copied

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a fresh shell, with this interpreter's folder first in PATH."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return variables | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"}

    def run(self, *command: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return its standard output and error."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.variables | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout
        self.returncode = done.returncode
        return done.stdout

    def git(self, *arguments: str) -> str:
        return self.run("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "-q", "-m", message)

    def repro(self, check: bool = True, env: Mapping[str, str] | None = None) -> list[str]:
        """Run `dvc repro` and return the stages that ran."""
        self.output = self.run("dvc", "repro", check=check, env=env)
        return [line.split("'")[1] for line in self.output.splitlines() if line.startswith("Running stage")]

    def edit_params(self, old: str, new: str) -> None:
        path = self.folder / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def metrics(self) -> dict[str, float]:
        """Of the evaluation, without `test/`."""
        metrics = json.loads((self.folder / "reports/evaluate/metrics.json").read_text())
        return {name.removeprefix("test/"): value for name, value in metrics.items()}

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every output file of the stages."""
        files = [path for out in OUTPUTS for path in (self.folder / out).rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): sha256_of(path) for path in files}

    def query(self, sql: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            return store.execute(sql).fetchall()

    def run_tags(self, key: str) -> list[str]:
        return [value for (value,) in self.query(f"SELECT value FROM tags WHERE key = '{key}'")]
