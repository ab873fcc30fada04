"""The code of runs, which is a commit and what was uncommitted, taken together: when two are the same, how they differ.

States are built in a temporary index and object store: the repository is left alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from classifier.errors import UserError
from classifier.project.files import sha256

SETTINGS = ("params.yaml", "dvc.lock")  # recorded as params and hashes; no code
DECISIVE = ("stages", "classifier", "dvc.yaml")  # the code that makes a result


@dataclass(frozen=True)
class Code:
    """A commit and git's binary patch on it; empty where nothing was changed."""

    commit: str
    patch: bytes = b""

    @property
    def decisive_patch(self) -> bytes:
        """The parts of the patch that touch decisive code."""
        parts = re.split(rb"^(?=diff --git )", self.patch, flags=re.MULTILINE)
        names = b"|".join(re.escape(name.encode()) for name in DECISIVE)
        return b"".join(part for part in parts if re.match(rb"diff --git a/(.*/)?(%s)[ /]" % names, part))


def code_ids(codes: Iterable[Code], project: Path) -> dict[Code, str]:
    """An id for each: equal where the decisive code is, whether committed or not.

    What the repository here does not know has an id of its own commit and patch.
    """
    found, trees = {}, {}
    for code in dict.fromkeys(codes):
        patch = code.decisive_patch
        found[code] = sha256(code.commit.encode() + patch)
        trees[code] = Code(code.commit, patch)
    try:
        with _workbench(project) as git:
            tree_of = {code: _tree_or_none(git, code) for code in dict.fromkeys(trees.values())}
            ids = git.objects(filter(None, tree_of.values()))
    except (OSError, ValueError):  # no git, or no repository
        return found
    return {code: ids.get(tree_of[trees[code]] or "", own) for code, own in found.items()}


def code_diff(first: Code, second: Code, project: Path) -> str:
    """What turns the one into the other, without settings; empty when nothing does.

    FileNotFoundError when the repository lacks a commit, UserError when a patch does not fit its commit.
    """
    if first == second:
        return ""
    with _workbench(project) as git:
        trees = [git.tree(code) for code in (first, second)]
        left_out = [f":(exclude,top,literal){git.prefix}{name}" for name in SETTINGS]
        plain = ["--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/"]  # whatever the user's git does
        return git.run("diff", *plain, *trees, "--", ":(top)", *left_out)


class _Git:
    """Git in the repository's top folder, with an index and new objects elsewhere."""

    def __init__(self, top: Path, prefix: str, variables: dict[str, str]) -> None:
        self.top, self.prefix, self.variables = top, prefix, variables

    def run(self, *arguments: str, stdin: bytes = b"") -> str:
        return _git(self.top, *arguments, stdin=stdin, variables=self.variables)

    def tree(self, code: Code) -> str:
        """Git's name of the state: a tree, or of a commit without a patch the commit."""
        if not code.patch:
            try:
                self.run("cat-file", "-e", f"{code.commit}^{{commit}}")
            except ValueError:
                raise FileNotFoundError(
                    f"commit {code.commit} is not in this repository: git fetch origin {code.commit}"
                ) from None
            return code.commit
        self.run("read-tree", self.tree(Code(code.commit)))
        try:
            self.run("apply", "--cached", "--binary", "--whitespace=nowarn", "-", stdin=code.patch)
        except ValueError as error:
            raise UserError(f"the recorded diff does not fit its commit {code.commit}: {error}") from None
        return self.run("write-tree").strip()

    def objects(self, trees: Iterable[str]) -> dict[str, str]:
        """Of each tree a digest of its decisive code, all in one process."""
        trees = list(trees)
        asked = "".join(f"{tree}:{self.prefix}{name}\n" for tree in trees for name in DECISIVE)
        lines = self.run("cat-file", "--batch-check=%(objectname)", stdin=asked.encode()).splitlines()
        each = len(DECISIVE)
        known = {tree: lines[each * place : each * (place + 1)] for place, tree in enumerate(trees)}
        return {
            tree: sha256(" ".join(ids).encode())
            for tree, ids in known.items()
            if not any(line.endswith(("missing", "ambiguous")) for line in ids)
        }


def _tree_or_none(git: _Git, code: Code) -> str | None:
    if not code.patch:
        return code.commit  # asked for together with the others
    try:
        return git.tree(code)
    except (OSError, ValueError):
        return None


@contextmanager
def _workbench(project: Path) -> Iterator[_Git]:
    top, prefix, objects = _git(
        project, "rev-parse", "--path-format=absolute", "--show-toplevel", "--show-prefix", "--git-path", "objects"
    ).split("\n")[:3]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "objects").mkdir()
        variables = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": f"{folder}/objects",
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        yield _Git(Path(top), prefix, variables)


def _git(folder: Path, *arguments: str, stdin: bytes = b"", variables: dict[str, str] | None = None) -> str:
    """Git's output; UserError has its complaint."""
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(["git", *arguments], cwd=folder, input=stdin, capture_output=True, env=environment)  # noqa: S603, S607
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout.decode(errors="replace")
