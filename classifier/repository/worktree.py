"""Checkouts of earlier states of the project. They do not change the workspace's files, index, branches or stash."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from classifier.repository.dvc import share_cache
from classifier.repository.git import Repository, Scratch, git, git_line


@contextmanager
def worktree(root: Path, commit: str, diff: bytes, *, keep: bool = False) -> Iterator[Path]:
    """Check out `commit` with `diff` applied in a temporary folder, with the current remotes of the project at `root`.

    The folder is removed at the end; with `keep`, its path is printed instead. Raises GitError if the repository lacks
    the commit or the diff does not apply.
    """
    repository = Repository.of(root)
    commit = repository.require(commit)
    folder = Path(tempfile.mkdtemp(prefix=f"{root.name}-")).resolve() / root.name
    project = folder / repository.prefix
    try:
        check_out(repository, folder, commit, diff)
        share_cache(root, project)
        yield project
    finally:
        if keep:
            print(f"worktree: {project}; to remove it: rm -rf {folder.parent}", file=sys.stderr)
        else:
            shutil.rmtree(folder.parent, ignore_errors=True)


def check_out(repository: Repository, folder: Path, commit: str, diff: bytes) -> None:
    """Make `folder` a repository at `commit`, with `diff` in its index and files. Ignored files in it are kept.

    It shares the objects of `repository` and uses its configuration: filters apply, and a partial clone fetches missing
    objects. (DVC does not support a linked worktree, `git worktree`, of a submodule.)
    """
    place = folder / ".git"
    if not place.exists():
        kind = git_line(repository.top, "rev-parse", "--show-object-format")
        git(repository.top, "init", "--quiet", "--template=", f"--object-format={kind}", str(folder))
        (place / "objects/info").mkdir(exist_ok=True)
        (place / "objects/info/alternates").write_text(f"{repository.objects}\n", encoding="utf-8")
        if (shallow := repository.objects.parent / "shallow").exists():
            shutil.copy(shallow, place)
    scratch = Scratch(repository, place)
    tree = scratch.tree(commit, diff)
    git(folder, "update-ref", "--no-deref", "HEAD", commit)
    theirs = {"GIT_DIR": str(repository.git_dir), "GIT_WORK_TREE": str(folder), **scratch.variables}
    git(folder, "read-tree", "--reset", "-u", tree, variables=theirs)
    git(folder, "clean", "-d", "--force", "--quiet")
