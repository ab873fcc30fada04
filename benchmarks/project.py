"""A temporary copy of this repository for measurements, set up like a user's: git, DVC, an MLflow store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.process import Sample, measure

ROOT = Path(__file__).parent.parent
# Variables that are removed: they would change what is measured. Python must cache the modules' bytecode.
FOREIGN = ("DVC_", "MLFLOW_", "GIT_", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
AUTHOR = ("-c", "user.name=benchmarks", "-c", "user.email=benchmarks@localhost")  # of commits


class Project:
    """The copy. Everything that runs writes to ignored folders, so that git sees a clean tree."""

    def __init__(self, folder: Path, mirror: str, epochs: int | None = None) -> None:
        """`mirror`: value of DATA_MIRROR; `epochs`: overrides train.epochs in params.yaml."""
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self.environment = {
            **kept,
            "DATA_MIRROR": mirror,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        }
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")  # noqa: S603
        for name in filter(None, files):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        if epochs:
            self.write_params("params.yaml", None, train={"epochs": epochs})
        for command in (["init", "-q"], ["add", "--all"], [*AUTHOR, "commit", "-q", "-m", "what is measured"]):
            self.run("git", *command)

    def run(self, *command: str, folder: str = ".", terminal: bool = False, family: str = "") -> Sample:
        """Run and measure a command; `folder` is relative to the project's root."""
        return measure(command, self.folder / folder, self.environment, terminal, family)

    def python(self, *arguments: str, terminal: bool = False, family: str = "") -> Sample:
        return self.run(sys.executable, *arguments, terminal=terminal, family=family)

    def module(self, name: str, *arguments: str, terminal: bool = False, family: str = "") -> Sample:
        return self.python("-m", name, *arguments, terminal=terminal, family=family)

    def write_params(self, path: str, recipe: str | None, **sections: dict[str, Any]) -> None:
        """Write params.yaml's values, overridden by those of the file `recipe`, overridden by `sections`."""
        yaml = YAML(typ="safe", pure=True)
        params = yaml.load(self.folder / "params.yaml")
        for changes in (yaml.load(self.folder / recipe)["params"] if recipe else {}, sections):
            for section, values in changes.items():
                params[section] |= values
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(json.dumps(params, indent=2))  # JSON is YAML
