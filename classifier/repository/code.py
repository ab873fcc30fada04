"""The code of a run: the commit and the uncommitted changes."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml import YAML

from classifier.project.files import sha256
from classifier.repository.git import GitError, Repository, Scratch
from classifier.repository.lockfile import CORRUPT

PIPELINE = "dvc.yaml"
DECISIVE = ("stages", "classifier", PIPELINE)  # the code that determines a result, if dvc.yaml does not name it
LARGEST_NEW_FILE = 1 << 20  # bytes of an untracked file; larger ones are data rather than code
LARGEST_NEW_FILES = 5 << 20  # bytes of all untracked files together
SOURCES = {  # suffixes, or names without a suffix, of untracked files that a run may need
    *(".py", ".pyi", ".pyx", ".ipynb", ".yaml", ".yml", ".toml", ".json", ".cfg", ".ini", ".txt", ".md", ".rst"),
    *(".sh", ".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".cuh", ".js", ".css", ".html", ".j2", ".sql", ".dvc", ".lock"),
    *("Makefile", "Dockerfile", ".gitignore", ".gitattributes", ".dvcignore"),
}
SECRETS = (  # names of files and folders that are never recorded
    *(".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "id_rsa*", "id_dsa*"),
    *("id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".htpasswd", ".git-credentials"),
    *(".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", "*credential*", "*secret*", "*password*"),
    *("token", "token.*", "*[-_]token", "*[-_]token.*", "service?account*.json", "config.local"),
)
SHOWN = 3  # names of each kind in a message


@dataclass(frozen=True)
class GitState:
    """The project's code: `commit` with `diff`, a binary patch that includes new files, is the code that ran."""

    commit: str | None = None  # None if unknown
    diff: bytes = b""  # empty without changes
    problem: str = ""  # why the code is unknown, or what was left out
    code: str = ""  # digest of the code that determines results (`code_paths`); empty if unknown
    dirty: bool | None = False  # whether tracked or recorded files differ from the commit; None if unknown

    @property
    def warning(self) -> str:
        """A warning for the user; empty if the code is recorded completely."""
        if not self.problem:
            return ""
        return f"{'the code is not recorded completely' if self.commit else 'no commit is recorded'}: {self.problem}"


def git_state(own: Sequence[str] = ()) -> GitState:
    """The state of the project in the current folder, without dvc.lock, which runs write and do not read.

    own: the user's images and weights, as paths in the project or absolute ones. Those that git does not track are
    not code.
    """
    try:
        repository = Repository.of(Path())
        commit = repository.head()
    except GitError as error:
        return GitState(problem=str(error)[:500])
    try:
        with repository.scratch() as scratch:
            problem, secret = _add_project(scratch, commit, own)
            whole = scratch.write_tree()
            code = code_digests(scratch, [whole]).get(whole, "")
            _reset(scratch, commit, [*secret, repository.path("dvc.lock")])
            tree = scratch.write_tree()
            diff = scratch.patch(commit, tree)
            return GitState(commit, diff, problem[:500], code, bool(diff or secret))
    except (GitError, OSError) as error:  # OSError: a file was removed in the meantime
        return GitState(commit, problem=str(error)[:500], dirty=None)


def code_paths(pipeline: bytes) -> list[str]:
    """The code that determines results, according to the content of dvc.yaml.

    That is dvc.yaml and its stages' dependencies, except outputs of stages and paths that params.yaml sets; `DECISIVE`
    if dvc.yaml has no stages.
    """
    try:
        stages = YAML(typ="safe").load(pipeline)["stages"].values()
        stages = [stage.get("do", stage) for stage in stages]  # of foreach and matrix
        made = {path for stage in stages for key in ("outs", "metrics", "plots") for path in _paths(stage, key)}
        used = {path for stage in stages for path in _paths(stage, "deps") if not path.startswith("${")}
        return sorted({PIPELINE, *used} - made)
    except CORRUPT:
        return list(DECISIVE)


def _paths(stage: Mapping[str, Any], key: str) -> list[str]:
    """The paths in a list of dvc.yaml, where an entry may be `PATH: {options}`."""
    paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in stage.get(key) or ()]
    return [posixpath.normpath(posixpath.join(stage.get("wdir", ""), path)) for path in paths]


def code_digests(scratch: Scratch, revisions: Iterable[str]) -> dict[str, str]:
    """A digest of the code that determines results, for each revision with a dvc.yaml (`code_paths`)."""
    same = defaultdict(list)
    for revision, [pipeline] in scratch.ids(revisions, [PIPELINE]).items():
        if pipeline:
            same[pipeline].append(revision)
    digests = {}
    for pipeline, group in same.items():
        names = code_paths(scratch.git("cat-file", "blob", pipeline))
        for revision, ids in scratch.ids(group, names).items():
            digests[revision] = sha256("\n".join(f"{name} {id}" for name, id in zip(names, ids, strict=True)).encode())
    return digests


def _add_project(scratch: Scratch, commit: str, own: Sequence[str]) -> tuple[str, list[str]]:
    """Fill the index with the commit and the changes since; returns a message about files left out of the record.

    The index has the changes of all tracked files. The names of those that may hold secrets are returned too, so that
    the caller can reset them.
    """
    repository = scratch.repository
    project, lock = f":(top,literal){repository.prefix}", repository.path("dvc.lock")
    scratch.git("read-tree", commit)
    if scratch.git("ls-files", "-z", "--", project):  # otherwise `git add` fails, because there is nothing to update
        scratch.git("add", "--update", "--", project)
    changed = _names(scratch.git("diff-index", "--cached", "--name-only", "-z", commit))
    tracked = [name for name in changed if _is_secret(name.removeprefix(repository.prefix))]
    new = _names(scratch.git("ls-files", "--others", "--exclude-standard", "-z", "--", project))
    new = outside(new, repository.top, [repository.top / repository.prefix / path for path in own])
    secret = [*tracked, *(name for name in new if _is_secret(name.removeprefix(repository.prefix)))]
    new = sorted({*new} - {*secret, lock})
    foreign = [name for name in new if not _is_source(name)]
    size = {name: os.lstat(repository.top / name).st_size for name in new if _is_source(name)}
    recorded, together = [], 0
    for name in sorted(size, key=lambda name: (size[name], name)):
        if size[name] <= LARGEST_NEW_FILE and together + size[name] <= LARGEST_NEW_FILES:
            recorded.append(name)
            together += size[name]
    scratch.git("update-index", "--add", "--remove", "-z", "--stdin", stdin=os.fsencode("\0".join(recorded)))
    large = [name for name in size if name not in recorded]
    problem = "; ".join(
        f"{_some(names)} ({why})"
        for names, why in (
            (secret, "may hold secrets"),
            (large, f"new files of over {LARGEST_NEW_FILE >> 20} MiB, or {LARGEST_NEW_FILES >> 20} MiB together"),
            (foreign, "not in git, and not source files"),
        )
        if names
    )
    return problem, tracked


def outside(names: Iterable[str], base: Path, places: Iterable[Path]) -> list[str]:
    """The names, relative to `base`, of files that are not in these places, which may be links."""
    both = {place for path in places for place in (path, path.resolve())}
    return [name for name in names if not any((base / name).is_relative_to(place) for place in both)]


def _reset(scratch: Scratch, commit: str, names: Sequence[str]) -> None:
    """Reset these files in the index to the commit."""
    options = ("--quiet", "--pathspec-from-file=-", "--pathspec-file-nul")
    scratch.git("--literal-pathspecs", "reset", *options, commit, stdin=os.fsencode("\0".join(names)))


def _names(listing: bytes) -> list[str]:
    return [name for name in os.fsdecode(listing).split("\0") if name]


def _is_secret(name: str) -> bool:
    """Whether a path below the project's folder may hold a secret."""
    return any(fnmatch(part.lower(), pattern) for part in PurePath(name).parts for pattern in SECRETS)


def _is_source(name: str) -> bool:
    path = PurePath(name)
    return not name.endswith("/") and not SOURCES.isdisjoint((path.suffix.lower(), path.name))  # "/": a repository


def _some(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    shown = [first, *more[: SHOWN - 1]]
    return ", ".join(shown) + (f" and {len(more) + 1 - len(shown)} more" if len(more) >= len(shown) else "")
