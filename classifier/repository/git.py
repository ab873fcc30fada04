"""Runs git independently of the user's configuration: without hooks, and with patches that apply everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from classifier.errors import UserError

SETTINGS = (
    f"core.hooksPath={os.devnull}",  # DVC's hooks check out data
    "core.fsmonitor=false",
    "core.splitIndex=false",  # would write a part of a temporary index into the repository
    "core.safecrlf=false",  # would refuse files with mixed line endings
    "core.quotePath=false",
    "apply.whitespace=nowarn",
    "log.showSignature=false",  # would print its findings among the commits
    "submodule.recurse=false",  # would make the repository's submodules belong to a checkout beside it
)
PATCH = ("--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")  # for `diff-tree`
REDIRECTING = (  # variables, set inside git's hooks for example, that point git elsewhere or change patches
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_DIFF_OPTS", "GIT_EXTERNAL_DIFF"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
)


class GitError(UserError):
    """An error message of git, in one line."""


def git(folder: Path, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> bytes:
    """Run git in `folder` and return its output. Raises GitError when git fails or is not installed."""
    environment = {name: value for name, value in os.environ.items() if name not in REDIRECTING}
    command = ["git", *(word for setting in SETTINGS for word in ("-c", setting)), *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, input=stdin, capture_output=True, env=environment | dict(variables or {})
        )
    except FileNotFoundError as error:
        if error.filename == "git":
            raise GitError("git is not installed") from None
        raise
    if done.returncode:
        name = next(word for word in arguments if not word.startswith("-"))
        raise GitError(f"git {name}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout


def git_line(folder: Path, *arguments: str) -> str:
    """Run git and return its output without the trailing newline."""
    return os.fsdecode(git(folder, *arguments)).rstrip("\n")


@dataclass(frozen=True)
class Repository:
    """The repository that contains a project, at its top or in a subfolder."""

    top: Path
    prefix: str  # the project's folder, such as "teams/vision/"; empty at the top
    git_dir: Path
    objects: Path

    @classmethod
    def of(cls, project: Path) -> Repository:
        """Find the project's repository. Raises GitError if there is none or git does not trust its owner."""
        what = ("--show-toplevel", "--show-prefix", "--git-dir", "--git-path", "objects")
        top, prefix, git_dir, objects = git_line(project, "rev-parse", "--path-format=absolute", *what).split("\n")
        return cls(Path(top), prefix, Path(git_dir), Path(objects))

    def path(self, name: str | Path) -> str:
        """Path of a project's file or folder in git and `dvc get`: `teams/vision/models/classifier`."""
        return f"{self.prefix}{name}"

    def artifact(self, name: str) -> str:
        """Name of an artifact of the project's dvc.yaml in git tags: `teams/vision=classifier`.

        `dvc artifacts get` takes a colon in place of the equals sign.
        """
        return f"{self.prefix.rstrip('/')}={name}" if self.prefix else name

    def git(self, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> bytes:
        """Run git in the top folder."""
        return git(self.top, *arguments, stdin=stdin, variables=variables)

    def head(self) -> str:
        """The current commit. Raises GitError in a repository without commits."""
        try:
            return self._commit("HEAD")
        except GitError:
            raise GitError(f"{self.top} is a git repository without commits: git add ., then git commit") from None

    def require(self, revision: str) -> str:
        """The commit of a revision. Raises GitError when the repository lacks it."""
        try:
            return self._commit(revision)
        except GitError:
            raise GitError(f"commit {revision} is not in this repository: git fetch origin {revision}") from None

    def _commit(self, revision: str) -> str:
        return self.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Yield a temporary index and object folder, used instead of the repository's own."""
        with tempfile.TemporaryDirectory() as folder:
            yield Scratch(self, Path(folder))


class Scratch:
    """Builds states of a repository without changing it."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.variables = {
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
            # Quoted, because git separates several paths by colons.
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": json.dumps(str(repository.objects), ensure_ascii=False),
        }
        (folder / "objects").mkdir(exist_ok=True)

    def git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run git in the repository's top folder."""
        return self.repository.git(*arguments, stdin=stdin, variables=self.variables)

    def tree(self, commit: str, patch: bytes = b"") -> str:
        """The tree of a commit with a patch applied. Raises GitError if the commit is missing or the patch fails."""
        self.repository.require(commit)
        self.git("read-tree", commit)
        if patch:
            try:
                self.git("apply", "--cached", "--binary", "-", stdin=patch)
            except GitError as error:
                raise GitError(f"the recorded diff does not fit its commit {commit}: {error}") from None
        return self.write_tree()

    def write_tree(self) -> str:
        """Write the index as a tree. A partial clone does not fetch missing objects for it."""
        return self.git("write-tree", "--missing-ok").decode().strip()

    def patch(self, first: str, second: str, *more: str) -> bytes:
        """The patch from one tree or commit to another; `more`: options and pathspecs.

        `diff-tree`, unlike `diff`, ignores user settings such as diff.noprefix or diff.context.
        """
        return self.git("diff-tree", "-r", "-p", *PATCH, first, second, *more)

    def extract(self, commit: str, folder: Path) -> Path:
        """Write the project's files of a commit below `folder`, as a checkout does; returns the project's folder."""
        project = self.repository.prefix
        self.git("read-tree", commit)
        names = self.git("ls-files", "-z", "--", f":(top,literal){project}")
        self.git("checkout-index", "-z", "--stdin", f"--prefix={folder}/", stdin=names)
        return folder / project

    def ids(self, revisions: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
        """Git's ids of these files and folders of the project in each revision; empty for those it lacks."""
        revisions, path = list(revisions), self.repository.path
        asked = "".join(f"{revision}:{path(name)}\n" for revision in revisions for name in names)
        lines = self.git("cat-file", "--batch-check=%(objectname)", stdin=os.fsencode(asked)).decode().splitlines()
        found = ["" if line.endswith((" missing", " ambiguous")) else line for line in lines]
        each = len(names)
        return {revision: found[place * each : (place + 1) * each] for place, revision in enumerate(revisions)}
