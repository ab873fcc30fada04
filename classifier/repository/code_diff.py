"""Compares the code of recorded runs, commits with uncommitted changes: their differences and ids."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from classifier.repository.code import DECISIVE, code_digests
from classifier.repository.git import GitError, Repository

SETTINGS = ("params.yaml", "dvc.lock")  # recorded as params and hashes


@dataclass(frozen=True)
class Code:
    """A commit and a binary patch on it, empty without changes."""

    commit: str
    patch: bytes = b""

    @property
    def decisive_patch(self) -> bytes:
        """The parts of the patch that change the code that determines results."""
        parts = re.split(rb"^(?=diff --git )", self.patch, flags=re.MULTILINE)
        names = b"|".join(re.escape(name.encode()) for name in DECISIVE)
        return b"".join(part for part in parts if re.match(rb"diff --git \"?a/(.*/)?(%s)[ /]" % names, part))


def code_ids(codes: Iterable[Code], project: Path) -> dict[Code, str]:
    """`GitState.code` of each code that is in the repository. Newer runs record it as a tag."""
    trees = {}
    try:
        with Repository.of(project).scratch() as scratch:
            for code in dict.fromkeys(codes):
                patch = code.decisive_patch
                with suppress(GitError):
                    trees[code] = scratch.tree(code.commit, patch) if patch else code.commit
            ids = code_digests(scratch, trees.values())
    except GitError:  # no git, or no repository
        return {}
    return {code: ids[tree] for code, tree in trees.items() if tree in ids}


def code_diff(first: Code, second: Code, project: Path) -> str:
    """The diff from one code to the other, without SETTINGS; empty if they are equal.

    Raises GitError if the repository lacks a commit or a patch does not apply to its commit.
    """
    if first == second:
        return ""
    repository = Repository.of(project)
    left_out = [f":(exclude,top,literal){repository.path(name)}" for name in SETTINGS]
    with repository.scratch() as scratch:
        trees = [scratch.tree(code.commit, code.patch) for code in (first, second)]
        return scratch.patch(*trees, "--find-renames", "--", ":(top)", *left_out).decode(errors="replace")
