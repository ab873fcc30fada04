"""Sweeps, `reproduce` and `verify` work in checkouts of the project, and find the images wherever they are."""

from __future__ import annotations

import json
import re
import sys

import pytest

from tests.photos import photos, write_files
from tests.projects import Project

pytestmark = pytest.mark.slow


def classifier(project: Project, *arguments: str) -> str:
    """What the command prints; `project.returncode` is its exit status."""
    return project.run(sys.executable, "-m", "classifier", *arguments, check=False)


@pytest.mark.parametrize(
    ("place", "command"),
    [("images", ["verify"]), ("my photos", ["reproduce", "latest"]), ("{elsewhere}/photos", ["verify"])],
    ids=["images", "another folder", "outside"],
)
def test_images_that_git_does_not_track_are_found_and_named_when_they_are_gone(tmp_path, place, command):
    """A sweep, then its result again, without DVC's cache."""
    project, place = Project(tmp_path / "project"), place.format(elsewhere=tmp_path)
    folder = project.folder / place
    write_files(folder, photos(*(f"{label}/{number}.png" for label in ("cat", "dog") for number in range(12))))
    values = {"dataset: digits": "folder", "folder: images ": f"{place} ", "epochs: 20": 1, "batch_size: 32": 8}
    for line, value in values.items():
        project.edit_params(line, f"{line.partition(':')[0]}: {value}")
    project.git("commit", "-q", "-a", "-m", "photos")
    before = project.git("status", "--short")
    assert before == ('?? "my photos/"\n' if place == "my photos" else "")

    said = classifier(project, "sweep", "train.seed=1")
    assert ": 1 finished, 0 failed\n" in said
    project.run("dvc", "exp", "apply", said.partition("dvc exp apply ")[2].splitlines()[0])
    project.git("add", "dvc.lock", "params.yaml")
    project.git("commit", "-q", "-m", "the sweep's result")
    project.run("rm", "-rf", ".dvc/cache", "data")
    said = classifier(project, *command, "--json")
    assert project.returncode == 0, said
    assert f"{folder.name}: 24 files, 2 classes\n" in said, "the checkout reads the images"
    assert json.loads(said[said.index("\n{\n") :])["identical"]
    assert project.git("status", "--short") == before
    assert len(list(folder.rglob("*.png"))) == 24

    folder.rename(tmp_path / "gone")
    said = classifier(project, *command)
    assert project.returncode == 1
    gone = rf"{re.escape(place)} (does not exist: set download\.folder|holds no images in class folders)"
    assert re.search(f"^classifier: .*download: {gone}", said, re.MULTILINE), said
    said = classifier(project, "sweep", "train.seed=2")
    assert project.returncode == 1
    assert said.startswith(f"classifier: {folder} does not exist: set download.folder to the folder, zip or tar"), said
    assert said.count("\n") == 1
