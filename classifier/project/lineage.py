"""Where a result comes from: the commit with what was changed since, DVC's hashes, DVC's experiment."""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PACKAGE = Path(__file__).parents[1]  # the library's folder, with all of its code


def project_root() -> Path:
    """The repository that all runs belong to.

    A sweep, whose experiments run in clones, names it in PIPELINE_ROOT. DVC sets DVC_ROOT to the main repository also
    where an experiment's working folder is a temporary one; without DVC it is the nearest folder upwards that holds
    `.dvc`, else the current one.
    """
    if root := os.environ.get("PIPELINE_ROOT") or os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def user_name() -> str:
    """The user's name, or number: in a container the number may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return str(os.getuid())


def dvc_hash(output: Path) -> str | None:
    """DVC's hash of a stage's output, such as `<md5>.dir`, from dvc.lock; None when DVC does not know it (yet)."""
    try:
        lock = YAML(typ="safe", pure=True).load(Path("dvc.lock"))
    except (FileNotFoundError, YAMLError):  # DVC does not write it in one step
        return None
    for stage in ((lock or {}).get("stages") or {}).values():
        for out in (stage or {}).get("outs") or []:
            if out.get("path") == output.as_posix() and "md5" in out:
                return str(out["md5"])
    return None


def experiment_tags() -> dict[str, str]:
    """Name and baseline of DVC's experiment; empty in a plain `dvc repro`."""
    names = {"dvc.exp.name": "DVC_EXP_NAME", "dvc.exp.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


@dataclass(frozen=True)
class GitState:
    """`diff` (git's binary patch, new files included) turns `commit` into what ran; empty when nothing was changed."""

    commit: str | None = None  # None outside git
    diff: bytes = b""
    problem: str = ""  # why the state is not known, or not all of it


LARGEST_NEW_FILE = 1 << 20  # bytes; a larger file that git does not track is data rather than code


def git_state() -> GitState:
    """The working folder's state; dvc.lock, which a run writes and does not read, does not count."""
    try:
        commit = _git("rev-parse", "HEAD").decode().strip()
    except FileNotFoundError:
        return GitState(problem="git is not installed")
    except subprocess.CalledProcessError as error:
        return GitState(problem=error.stderr.decode(errors="replace").strip()[:500])
    try:
        return _with_diff(commit)
    except subprocess.CalledProcessError as error:
        return GitState(commit, problem=error.stderr.decode(errors="replace").strip()[:500])
    except OSError as error:  # a file that went while it was looked at
        return GitState(commit, problem=str(error)[:500])


def _with_diff(commit: str) -> GitState:
    """A temporary index and object store take the place of git's own, which are left alone."""
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z").decode("utf-8", "surrogateescape").split("\0")
    large = [name for name in untracked if name and os.lstat(name).st_size > LARGEST_NEW_FILE]
    left_out = [f":(exclude,top,literal){name}" for name in ["dvc.lock", *large]]
    with tempfile.TemporaryDirectory() as folder:
        objects = _git("rev-parse", "--path-format=absolute", "--git-path", "objects").decode().strip()
        (Path(folder) / "objects").mkdir()
        own = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": f"{folder}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        _git("read-tree", "HEAD", **own)
        _git("add", "--all", "--", ".", *left_out, **own)
        plain = ["--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/"]  # whatever the user's git does
        diff = _git("diff", "--cached", "--binary", *plain, "HEAD", **own)
    return GitState(commit, diff, f"too large for the diff: {', '.join(large)}"[:500] if large else "")


def _git(*arguments: str, **environment: str) -> bytes:
    environment = {**os.environ, **environment}
    return subprocess.run(["git", *arguments], check=True, capture_output=True, env=environment).stdout  # noqa: S603, S607
