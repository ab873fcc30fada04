"""DVC experiments outside the workspace: `dvc exp run` in clones of the repository.

`dvc exp run --temp` and `--queue` briefly stash the workspace's changes, and a kill leaves them in git's stash. A clone
does not touch the workspace, and can be recreated after a kill. It shares git's objects and DVC's cache, so that
creating it takes a fraction of a second, and it keeps the data between experiments.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from classifier.errors import UserError
from classifier.project.processes import end_processes
from classifier.repository.code import git_state, outside
from classifier.repository.dvc import (
    cache,
    dvc_command,
    dvc_environment,
    experiment_refs,
    listing_in,
    place_in,
    share_cache,
)
from classifier.repository.git import Repository, git, git_line
from classifier.repository.lockfile import CORRUPT, Lock
from classifier.repository.worktree import check_out, share_images

ROOT_VARIABLE = "PIPELINE_ROOT"  # see classifier.project.lineage; set for all processes in clones


@dataclass(frozen=True)
class Baseline:
    """The workspace's state when the clones were created; all experiments start from it."""

    root: Path  # the project's
    repository: Repository
    commit: str
    diff: bytes
    changed: Sequence[str]  # paths below the root that differ from the commit, including those not in the diff
    own: Sequence[str] = ()  # the user's images and weights: download.folder, train.pretrained_file

    @classmethod
    def of(cls, root: Path, own: Sequence[str] = ()) -> Baseline:
        """Capture the current state. Raises UserError if the project has no commit."""
        state = git_state(own)
        if state.commit is None:
            raise UserError(f"DVC's experiments start from a commit: {state.problem}")
        plain = ("--name-only", "--no-renames", "--ignore-submodules", "--relative", "-z")
        tracked = git(root, "diff", *plain, "HEAD", "--", ".")
        others = git(root, "ls-files", "--others", "--exclude-standard", "-z")
        names = [name for name in os.fsdecode(tracked + others).split("\0") if name]
        changed = outside(names, root.resolve(), [root.resolve() / path for path in own])
        return cls(root, Repository.of(root), state.commit, state.diff, changed, own)


class Clone:
    """The clone of one worker."""

    def __init__(self, baseline: Baseline, folder: Path) -> None:
        self.baseline = baseline
        self.folder = folder
        self.project = folder / baseline.repository.prefix

    def make(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.reset()
        share_cache(self.baseline.root, self.project)

    def reset(self) -> None:
        """Restore the baseline; files that git ignores, such as the data, are kept.

        The recorded diff leaves out data, secrets and dvc.lock. Experiments may need them, so all changed files are
        copied too.
        """
        check_out(self.baseline.repository, self.folder, self.baseline.commit, self.baseline.diff)
        for name in self.baseline.changed:
            source, target = self.baseline.root / name, self.project / name
            if source.is_dir() and not source.is_symlink():  # a repository within this one
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
                continue
            target.unlink(missing_ok=True)
            if source.is_symlink() or source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        for path in self.baseline.own:
            share_images(self.baseline.root, self.project, path)

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start `dvc ARGUMENTS` in the clone, in its own session, so that Ctrl-C reaches only this process."""
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603, arguments of this project
                dvc_command(*arguments),
                cwd=self.project,
                env={**dvc_environment(), ROOT_VARIABLE: str(self.baseline.root), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def collect(self, name: str) -> None:
        """Fetch DVC's experiments with this name or pattern into the project's repository."""
        found = git_line(self.folder, "for-each-ref", "--format=+%(refname):%(refname)", experiment_refs(name))
        if found:
            options = ["--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--stdin"]
            git(self.baseline.root, "fetch", *options, str(self.folder), stdin=found.encode())


def applicable_experiments(root: Path, pattern: str) -> set[str]:
    """Names of the DVC experiments that match the pattern and whose outputs are in the cache, as `dvc exp apply` needs.

    After `dvc gc -w`, an experiment still exists, but applying it would fail and delete the workspace's outputs.
    """
    found = git_line(root, "for-each-ref", "--format=%(refname)", experiment_refs(pattern)).split()
    folder = cache(root)
    quick = YAML(typ="safe")  # the C parser reads 1e-5 as text, but it reads DVC's hashes correctly
    names = set()
    for reference in found:
        with suppress(ValueError, *CORRUPT):  # an experiment without a valid dvc.lock, from another tool
            lock = Lock(quick.load(git(root, "show", f"{reference}:./dvc.lock"))["stages"])
            if all(_is_cached(md5, folder) for md5 in lock.outputs.values()):
                names.add(reference.rpartition("/")[2])
    return names


def _is_cached(md5: str, folder: Path) -> bool:
    """Whether a file, or a folder with all its files, is in DVC's cache."""
    if not place_in(folder, md5).is_file():
        return False
    return not md5.endswith(".dir") or all(_is_cached(each, folder) for each in listing_in(folder, md5).values())


def experiment_arguments(name: str, values: Mapping[str, Any]) -> list[str]:
    """The arguments for `dvc` that run an experiment."""
    settings = [f"{key}={_written(value)}" for key, value in values.items()]
    return ["exp", "run", "--name", name, *(word for setting in settings for word in ("--set-param", setting))]


def _written(value: Any) -> str:
    """Format a value for --set-param: JSON, which DVC parses to the same value, or a plain word without quotes."""
    plain = (
        isinstance(value, str) and value.isidentifier() and value.lower() not in ("true", "false", "null", "nan", "inf")
    )
    return value if plain else json.dumps(value, ensure_ascii=False)


def stop_processes(folder: Path) -> None:
    """End the processes in the clones in `folder`, including those of a killed sweep."""
    end_processes(lambda: _processes(folder))


def _processes(folder: Path) -> Iterator[psutil.Process]:
    """Processes that run in `folder` and descend from `Clone.start`."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and ROOT_VARIABLE in process.environ():
                yield process
        except (psutil.Error, OSError):  # gone, or another user's
            continue
