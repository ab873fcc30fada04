"""A recorded state of the project, checked out beside the workspace, whose files, index, branches and stash stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from classifier.errors import UserError
from classifier.project.lineage import user_name


@contextmanager
def worktree(root: Path, commit: str, diff: bytes, *, keep: bool = False) -> Iterator[Path]:
    """The project as it was: `commit` with `diff` on it, and the cache and the remotes of the project at `root`.

    It lies in a temporary folder, which is removed in the end, whatever happens, unless `keep`: then an error
    says where it is. FileNotFoundError when the repository lacks the commit, UserError when the diff does not fit it.
    """
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=root, capture_output=True).returncode:  # noqa: S603, S607
        raise FileNotFoundError(f"commit {commit} is not in this repository: git fetch origin {commit}")
    folder = Path(tempfile.mkdtemp(prefix=f"{root.name}-")).resolve() / root.name
    try:
        git(root, "worktree", "add", "--quiet", "--detach", str(folder), commit)
        if diff:
            try:
                git(folder, "apply", "--binary", "--whitespace=nowarn", "-", stdin=diff)
            except ValueError as error:
                raise UserError(f"the recorded diff does not fit its commit {commit}: {error}") from None
        project = folder / git(root, "rev-parse", "--show-prefix").strip()
        share_cache(root, project)
        yield project
    except BaseException:
        if keep:
            print(f"worktree: {folder}; when it may go: git worktree remove --force {folder}", file=sys.stderr)
        raise
    finally:
        if not keep:
            shutil.rmtree(folder.parent, ignore_errors=True)
            if str(folder) in git(root, "worktree", "list", "--porcelain"):
                git(root, "worktree", "remove", "--force", "--force", str(folder))  # locked if adding was broken off


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Git's output; UserError has its complaint. No hooks: DVC's would check out data, others do who knows what."""
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *arguments]
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True)  # noqa: S603
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout.decode()


def dvc_environment() -> dict[str, str]:
    """The variables of a `dvc` command that we start: not those of the DVC or git command that we may run in.

    DVC stops without a user's name, as in a container whose user is a number alone: it gets the number.
    """
    outer = ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables["USER"] = variables.get("USER") or user_name()
    return variables


def share_cache(root: Path, project: Path) -> None:
    """Give a worktree or a clone the project's cache, and its remotes as they are now, with their credentials."""
    from dvc.config import Config, merge  # here: it takes 0.3 s

    ours, theirs = Config(str(root / ".dvc")), Config(str(project / ".dvc"))
    with theirs.edit("local") as config:
        for level in ("repo", "local"):
            merge(config, ours.load_one(level))
        config["cache"]["dir"] = str(cache(root))


def cache(root: Path) -> Path:
    """The folder of the project's cache, where DVC's configuration has it."""
    from dvc.config import Config

    return root / str(Config(str(root / ".dvc"))["cache"].get("dir", ".dvc/cache"))
