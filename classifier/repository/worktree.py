"""Checkouts of earlier states of the project. They do not change the workspace's files, index, branches or stash."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from classifier.repository.dvc import dvc_tracks, share_cache
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


def lacks_images(root: Path, download: Mapping[str, Any]) -> bool:
    """Whether the project at `root` lacks the images of its section `download`, and DVC does not track them either."""
    if download.get("dataset") != "folder" or download.get("address"):
        return False
    folder = download["folder"]
    return not (root / folder).exists() and not dvc_tracks(root, folder)


def share_images(root: Path, project: Path, folder: str) -> None:
    """Link the user's images or weights, at `folder` in the project at `root`, into a checkout of it.

    Does nothing for images outside the project and for those that DVC tracks. If git checked out a part of the folder,
    hard links add the other files, because DVC does not follow links to folders within a folder.
    """
    source, target = root / folder, project / folder
    if Path(folder).is_absolute() or not source.exists() or dvc_tracks(root, folder):
        return
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
        return
    for place, _, names in os.walk(source) if not target.is_symlink() else ():
        beside = target / Path(place).relative_to(source)
        beside.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (beside / name).exists():
                _link(Path(place, name).resolve(), beside / name)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)  # another file system
