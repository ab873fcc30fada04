"""Where a result comes from: the commit with what was changed since, DVC's hashes, DVC's experiment."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML


def project_root() -> Path:
    """The repository that all runs belong to.

    DVC sets DVC_ROOT to the main repository also where an experiment's working folder is a temporary one;
    without DVC it is the nearest folder upwards that holds `.dvc`, else the current one.
    """
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def dvc_hash(output: Path) -> str | None:
    """DVC's hash of a stage's output, such as `<md5>.dir`, from dvc.lock; None when DVC does not know it (yet)."""
    try:
        lock = YAML(typ="safe", pure=True).load(Path("dvc.lock"))
    except FileNotFoundError:
        return None
    for stage in lock.get("stages", {}).values():
        for out in stage.get("outs", []):
            if out["path"] == output.as_posix():
                return str(out["md5"])
    return None


def experiment_tags() -> dict[str, str]:
    """Name and baseline of DVC's experiment; empty in a plain `dvc repro`."""
    names = {"dvc.exp.name": "DVC_EXP_NAME", "dvc.exp.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


@dataclass(frozen=True)
class GitState:
    """`diff` (git's binary patch, new files included) turns `commit` into what ran; empty when nothing was changed."""

    commit: str
    diff: bytes

    @property
    def dirty(self) -> bool:
        return bool(self.diff)


def git_state() -> GitState | None:
    """The working folder's state, None outside git; dvc.lock, which a run writes and does not read, does not count.

    The index is left alone: a temporary one takes its place.
    """
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            _git("read-tree", "HEAD", **index)
            _git("add", "--all", "--", ".", ":(exclude)dvc.lock", **index)
            return GitState(commit, _git("diff", "--cached", "--binary", "HEAD", **index))
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str, **environment: str) -> bytes:
    environment = {**os.environ, **environment}
    return subprocess.run(["git", *arguments], check=True, capture_output=True, env=environment).stdout  # noqa: S603, S607
