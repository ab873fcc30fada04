"""Runs DVC, and collects everything that the project relies on beyond DVC's public interface.

DVC's log messages, configuration and locks may change with any version. Everything that depends on them is here, and
`tests/repository/test_dvc.py` tests it with the installed version.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from classifier.project.lineage import user_name
from classifier.repository.git import REDIRECTING

RWLOCK, REPOSITORY_LOCK = Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/lock")
SIGNALLED = rb"exited with (-\d+|1(29|[3-5]\d))\b"  # exit status of a stage, or its shell, that a signal ended
ERROR = "ERROR: "  # starts DVC's message, which may span several lines


def dvc_command(*arguments: str) -> list[str]:
    """The command line of this environment's DVC."""
    return [sys.executable, "-m", "dvc", *arguments]


def dvc_environment() -> dict[str, str]:
    """Environment of a `dvc` command, without the variables of a DVC or git command that this process may run in.

    DVC fails if the user has no name, as in some containers; it gets the numeric id instead.
    """
    outer = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_", *REDIRECTING)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables["USER"] = variables.get("USER") or user_name()
    return variables


def reached(stage: str, output: bytes) -> bool:
    """Whether a `dvc` command with this output reached the stage, to execute or to skip it."""
    return f"stage '{stage}'".encode() in output.lower()


def was_signalled(output: bytes) -> bool:
    """Whether DVC reports that a signal ended the stage."""
    return re.search(SIGNALLED, output) is not None


def complaint(output: Sequence[str]) -> str:
    """Why a `dvc` command with these lines of output failed: the last line of its stage, or DVC's own message."""
    lines = [line.strip() for line in output if line.strip()]
    first = next((place for place, line in enumerate(lines) if line.startswith(ERROR)), len(lines))
    own = " ".join(lines[first:]).removeprefix(ERROR)
    if lines[:first] and (not own or ": failed to run: " in own):
        return lines[first - 1]
    return own[:500] or "DVC failed without a message"


def share_cache(root: Path, project: Path) -> None:
    """Give a checkout the project's cache and its current remotes, with their credentials."""
    from dvc.config import Config, merge  # imported here: it takes 0.3 s

    ours, theirs = Config(str(root / ".dvc")), Config(str(project / ".dvc"))
    with theirs.edit("local") as config:
        for level in ("repo", "local"):
            merge(config, ours.load_one(level))
        config["cache"]["dir"] = str(cache(root))


def cache(root: Path) -> Path:
    """The folder of the project's cache."""
    from dvc.config import Config

    return root / str(Config(str(root / ".dvc"))["cache"].get("dir", ".dvc/cache"))


def place_in(cache_folder: Path, md5: str) -> Path:
    """Path in the cache of the file, or of the folder's listing, with this hash."""
    return cache_folder / "files/md5" / md5[:2] / md5[2:]


def listing_in(cache_folder: Path, md5: str) -> dict[str, str]:
    """The hashes of a cached folder's files by their paths in it. Raises FileNotFoundError if it is not cached."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(place_in(cache_folder, md5).read_bytes())}


def dvc_tracks(root: Path, path: str) -> bool:
    """Whether `dvc add` tracks a file or folder of the project at `root`, or a folder above it."""
    return any((root / f"{place}.dvc").is_file() for place in (Path(path), *Path(path).parents) if place.name)


def experiment_refs(pattern: str) -> str:
    """The pattern of git references to experiments with this name or pattern."""
    return f"refs/exps/*/*/{pattern}"


def reads(lock: Path) -> bool:
    """Whether DVC can read this dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(lock))
    except (YAMLError, Invalid, UnicodeDecodeError):
        return False
    return True


@contextmanager
def locked() -> Iterator[bool]:
    """Lock the current folder's project against DVC; yields False if DVC is running in it or never ran."""
    from zc.lockfile import LockError, LockFile  # DVC's own lock, released when its process ends

    if not REPOSITORY_LOCK.parent.is_dir():
        yield False
        return
    try:
        lock = LockFile(str(REPOSITORY_LOCK))
    except LockError:
        yield False
        return
    try:
        yield True
    finally:
        lock.close()
