"""What the folders of a source, or its table, say about each image: class, split, group.

Layouts of folders: `train/`, `validation/` (or `valid/`, `val/`) and `test/` with a folder per class, or a folder per
class alone. A class in nested folders is named by its whole path, `animals/cat`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unicodedata import normalize

from classifier.errors import UserError
from classifier.params import DownloadParams
from classifier.project.lineage import project_root
from classifier.sources.listing import Entry, Listing

SPLIT_NAMES = {  # of folders and in tables; upper and lower case are the same
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHOWN = 20  # names in a message
MOST_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Placed:
    """A file, with the class, split and group that its path gives; all three are None for a file with a problem."""

    entry: Entry
    class_name: str | None
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Layout:
    """All files, in the order of the listing, and the class names in the order of their numbers."""

    files: list[Placed]
    class_names: list[str]


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: runs of digits count as numbers, so that 2 comes before 10."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts], name


def lay_out(listing: Listing, params: DownloadParams) -> Layout:
    """Read classes, splits and groups from the folders' names. Raises UserError, naming what is wrong."""
    paths = [entry.path.removeprefix(listing.root) for entry in listing.entries]
    empty = [path for folder in listing.empty if (path := f"{folder}/".removeprefix(listing.root).rstrip("/"))]
    tops = {path.split("/")[0] for path in [*(path for path in paths if "/" in path), *empty]}
    split_of = _splits(tops, named=params.classes is not None)
    level = params.groups if isinstance(params.groups, int) else 0

    @cache
    def place(folder: str) -> tuple[str, str | None, str | None] | UserError:
        """Class name, split and group of the files in a folder, or the reason why they have none."""
        folders = folder.split("/") if folder else []
        split = split_of[folders.pop(0)] if split_of and folders else None
        group = None
        if level:
            if not -len(folders) <= (index := level - (level > 0)) < len(folders):
                return UserError(f"has no folder at level {level}, which names its group")
            group = normalize("NFC", folders.pop(index))
        return (normalize("NFC", "/".join(folders)), split, group) if folders else UserError("is not in a class folder")

    files = []
    for entry, path in zip(listing.entries, paths, strict=True):
        placed = place(path.rpartition("/")[0]) if entry.problem is None else UserError(entry.problem)
        if isinstance(placed, UserError):
            files.append(Placed(replace(entry, problem=str(placed)), None, None, None))
        else:
            files.append(Placed(entry, *placed))
    vacant = {placed[0] for folder in empty if not isinstance(placed := place(folder), UserError)}
    return Layout(files, class_order(files, vacant, params))


def class_order(files: Sequence[Placed], vacant: Iterable[str], params: DownloadParams) -> list[str]:
    """The class names in the order of their numbers; `vacant`: the classes of folders without images.

    Raises UserError for classes that download.classes lacks, or that have no images and are not in download.classes.
    """
    found = {file.class_name for file in files if file.class_name is not None}
    vacant = set(vacant) - found
    if not found:
        copied = Path.cwd() != project_root() and not Path(params.folder).is_absolute()
        hint = "; a copy of the project needs an absolute path in download.folder, or dvc add" if copied else ""
        bad = next((file.entry for file in files if file.entry.problem), None)
        first = f"; the first of {len(files):,} files, {bad.path!r:.200}, {bad.problem}" if bad else ""
        raise UserError(
            f"{params.folder} holds no images in class folders: docs/images.md shows how to arrange them{first}{hint}"
        )
    if odd := sorted(name for name in found | vacant if not name.isprintable()):
        raise UserError(f"class names {shown(odd)}: allowed are printable characters: rename the folders")
    if params.classes is not None:
        listed = [normalize("NFC", name) for name in params.classes]
        if unnamed := sorted((found | vacant) - set(listed), key=natural):
            raise UserError(
                f"download.classes lacks {shown(unnamed)}, of which {params.folder} has images or folders: add them"
            )
        return listed
    if vacant:
        raise UserError(
            f"classes without images: {shown(sorted(vacant, key=natural))}: add images, remove the folders, or list "
            "all classes in download.classes"
        )
    if len(found) < 2:
        raise UserError(
            f"{params.folder} has a single class, {shown(found)}: allowed are two or more; download.folder is the "
            "folder above the classes' folders"
        )
    if len(found) > MOST_CLASSES:
        raise UserError(f"{params.folder} has {len(found):,} classes: allowed are {MOST_CLASSES:,}")
    return sorted(found, key=natural)


def shown(names: Iterable[str]) -> str:
    """The first names, quoted, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name!r:.200}" for name in names[:SHOWN]) + more


def _splits(tops: Iterable[str], *, named: bool) -> dict[str, str]:
    """Folder -> split; empty for a folder per class. `named`: download.classes says which folders are classes."""
    splits: dict[str, list[str]] = defaultdict(list)
    others = []
    for top in sorted(tops):
        if top.lower() in SPLIT_NAMES:
            splits[SPLIT_NAMES[top.lower()]].append(top)
        else:
            others.append(top)
    if not splits or (others and named):
        return {}
    names = shown(folder for folders in splits.values() for folder in folders)
    if others:
        raise UserError(
            f"the folders {names} are splits, {shown(others)} are not: remove or move these, "
            "or list all classes in download.classes if these names are classes"
        )
    if twice := [folders for folders in splits.values() if len(folders) > 1]:
        raise UserError(f"the folders {shown(twice[0])} are the same split: keep one of them")
    if "train" not in splits:
        raise UserError(f"found the folders {names}, but no train/: add it")
    return {folders[0]: split for split, folders in splits.items()}
