"""The files of a stage's output from before this execution. DVC removes outputs before it runs a stage."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from classifier.project.lineage import find_root
from classifier.repository.dvc import cache, listing_in, place_in
from classifier.repository.lockfile import read_lock


def previous_files(output: Path) -> dict[str, Path]:
    """Name -> path, in the output itself or, according to dvc.lock, in DVC's cache; empty if they are in neither."""
    if output.is_dir():
        return {path.name: path for path in output.iterdir()}
    with suppress(OSError, ValueError, KeyError):
        md5 = read_lock().outputs[output.as_posix()]
        if root := find_root(Path.cwd()):
            folder = cache(root)
            places = {name: place_in(folder, part) for name, part in listing_in(folder, md5).items()}
            return {name: place for name, place in places.items() if place.is_file()}
    return {}
