"""`dvc.lock` as data: what the stages made, of which params and which code, and whether that is what lies there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from classifier.errors import UserError

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Lock:
    """The file's stages, by name."""

    stages: Mapping[str, Mapping[str, Any]]

    @property
    def outputs(self) -> dict[str, str]:
        """Path -> DVC's hash, of what all stages made."""
        return {out["path"]: out["md5"] for stage in self.stages.values() for out in stage.get("outs", [])}

    @property
    def code(self) -> dict[str, str]:
        """Path -> MD5, of the files that the stages depend on and none of them made."""
        made = self.outputs
        return {path: md5 for _, path, md5 in self._dependencies() if path not in made}

    @property
    def params(self) -> dict[str, Any]:
        """The sections of params.yaml that the stages name, with the values that they ran with."""
        files = [stage.get("params", {}).get("params.yaml", {}) for stage in self.stages.values()]
        return {section: values for file in files for section, values in file.items()}

    def check(self, outputs: Iterable[Path]) -> None:
        """FileNotFoundError or UserError names the output that is not what this file says."""
        made = self.outputs
        for stage, path, md5 in self._dependencies():
            if made.get(path, md5) != md5:
                raise UserError(f"{LOCK} is of no single run, its {stage} is of another {path}: dvc repro")
        for output in outputs:
            name = output.as_posix()
            if name not in made:
                raise FileNotFoundError(f"{name} is not in {LOCK}: dvc repro")
            if not output.is_dir():
                raise FileNotFoundError(f"{name} does not exist: dvc pull, or dvc repro")
            if (found := folder_hash(output)) != made[name]:
                raise UserError(f"{name} has the hash {found}, {LOCK} says {made[name]}: dvc checkout, or dvc repro")

    def _dependencies(self) -> list[tuple[str, str, str]]:
        """(stage, path, hash)."""
        return [(name, dep["path"], dep["md5"]) for name, stage in self.stages.items() for dep in stage.get("deps", [])]


def read_lock() -> Lock:
    """Of the current folder; FileNotFoundError when there is none, UserError when it is not DVC's."""
    try:
        return Lock(YAML(typ="safe", pure=True).load(LOCK)["stages"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{LOCK} does not exist: run in the project's root, or dvc repro first") from None
    except (YAMLError, KeyError, TypeError):
        raise UserError(f"{LOCK} is damaged: git checkout {LOCK}, or dvc repro") from None


def folder_hash(folder: Path) -> str | None:
    """DVC's hash of a folder, `<md5>.dir`, made from its files; None when it has none."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    entries = []
    for name in sorted(files):
        with files[name].open("rb") as file:
            entries.append({"md5": hashlib.file_digest(file, "md5").hexdigest(), "relpath": name})
    content = json.dumps(entries, sort_keys=True).encode()
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}.dir" if entries else None
