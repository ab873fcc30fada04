"""Reads dvc.lock: the stages' outputs, params and code by their hashes, and compares them with the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from classifier.errors import UserError
from classifier.project.lineage import find_root
from classifier.repository.dvc import cache, listing_in

LOCK = Path("dvc.lock")
RESOLVE = f"git checkout --ours {LOCK} (or --theirs), git add {LOCK}, then dvc repro"
CORRUPT = (YAMLError, KeyError, TypeError, AttributeError)  # raised by reading a file that is not a dvc.lock
IGNORED = "__pycache__"  # by .dvcignore


@dataclass(frozen=True)
class Lock:
    """The file's stages, by name."""

    stages: Mapping[str, Mapping[str, Any]]

    @property
    def outputs(self) -> dict[str, str]:
        """DVC's hash of each stage's outputs, by path."""
        return {out["path"]: out["md5"] for stage in self.stages.values() for out in stage.get("outs", [])}

    @property
    def code(self) -> dict[str, str]:
        """DVC's hash of the stages' dependencies that are neither outputs nor the user's images or weights."""
        keys = (("download", "folder"), ("train", "pretrained_file"))
        made = {*self.outputs, *(str(self.params.get(section, {}).get(key)) for section, key in keys)}
        return {path: md5 for _, path, md5 in self._dependencies() if path.rstrip("/") not in made}

    @property
    def params(self) -> dict[str, Any]:
        """The stages' sections of params.yaml, with the values of their last execution."""
        files = [stage.get("params", {}).get("params.yaml", {}) for stage in self.stages.values()]
        return {section: values for file in files for section, values in file.items() if "." not in section}

    def check(self, outputs: Iterable[Path]) -> None:
        """Raises FileNotFoundError or UserError for the first output that differs from dvc.lock."""
        made = self.outputs
        for stage, path, md5 in self._dependencies():
            if made.get(path, md5) != md5:
                raise UserError(f"{LOCK} mixes runs: its stage {stage} used a different {path}; run dvc repro")
        for output in outputs:
            name = output.as_posix()
            if name not in made:
                raise FileNotFoundError(f"{name} is not in {LOCK}: dvc repro")
            if not output.is_dir():
                raise FileNotFoundError(f"{name} does not exist: dvc pull, or dvc repro")
            if (found := hash_of(output)) != made[name]:
                raise UserError(f"{name} has the hash {found}, {LOCK} says {made[name]}: dvc checkout, or dvc repro")

    def _dependencies(self) -> list[tuple[str, str, str]]:
        """(stage, path, hash)."""
        return [(name, dep["path"], dep["md5"]) for name, stage in self.stages.items() for dep in stage.get("deps", [])]


def read_lock(project: Path = Path()) -> Lock:
    """Read a project's dvc.lock. Raises FileNotFoundError or UserError when it is missing or corrupt."""
    lock = project / LOCK
    try:
        return Lock(YAML(typ="safe", pure=True).load(lock)["stages"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{LOCK} does not exist: run in the project's root, or dvc repro first") from None
    except CORRUPT:
        if has_conflicts(lock.read_bytes()):
            raise UserError(f"{LOCK} has merge conflicts: {RESOLVE}") from None
        raise UserError(f"{LOCK} is corrupt: git checkout {LOCK}, or dvc repro") from None


def has_conflicts(content: bytes) -> bool:
    """Whether a merge left its markers in the file."""
    return any(line.startswith((b"<<<<<<< ", b">>>>>>> ")) for line in content.splitlines())


def hash_of(path: Path) -> str | None:
    """DVC's hash of `path`: the MD5 of a file, `<md5>.dir` for a folder, None if it does not exist."""
    if not path.is_dir():
        return _md5(path) if path.is_file() else None
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    entries = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files) if IGNORED not in name.split("/")]
    return f"{hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest()}.dir"


def hash_told_by(output: Path, file: str) -> str | None:
    """The hash in dvc.lock of a large folder, of which only `file` is read: it has the digests of all other files.

    None unless DVC's cache lists the same names and the same `file` under that hash.
    """
    with suppress(OSError, ValueError, KeyError):
        locked, root = read_lock().outputs[output.as_posix()], find_root(Path.cwd())
        listing = listing_in(cache(root), locked) if root else {}
        if listing.keys() == {path.name for path in output.iterdir()} and listing[file] == _md5(output / file):
            return locked
    return None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
