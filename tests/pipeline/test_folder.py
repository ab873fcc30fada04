"""DVC and the stage download on a folder of images: what it notices, where it works. Only this stage is in dvc.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from classifier.project.checksummed import read_checksummed
from classifier.sources.raw import Manifest
from tests.photos import image, pets, write_files
from tests.projects import Project
from tests.samples import ROOT

pytestmark = pytest.mark.slow

RAN, NOTHING = ["download"], []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A committed project whose pipeline ends with download."""
    folder = tmp_path_factory.mktemp("project")
    project = Project(folder)
    pipeline = YAML(typ="safe").load(ROOT / "dvc.yaml")
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"download": pipeline["stages"]["download"]}}))
    project.edit_params("dataset: digits", "dataset: folder")
    project.commit("download alone")
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    return made.copy(tmp_path / "project")


def use(project: Project, folder: str | Path) -> None:
    project.edit_params("folder: images ", f"folder: {folder} ")


def raw(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.folder / "data/raw").iterdir()}


def test_one_image_changed_added_renamed_or_removed_runs_download_and_nothing_else_does(project, tmp_path):
    photos = write_files(tmp_path / "my photos", pets(3))
    use(project, photos)
    assert project.repro() == RAN
    first = raw(project)
    assert project.repro() == NOTHING
    assert "Data and pipelines are up to date" in project.output

    one = photos / "cat/0.png"
    original = one.read_bytes()
    one.write_bytes(original[:-20] + bytes([original[-20] ^ 1]) + original[-19:])
    assert project.repro() == RAN, "changed, of the same size"
    one.write_bytes(original)
    write_files(photos, {"dog 2/new.png": image(99)})
    assert project.repro() == RAN, "added"
    (photos / "dog 2/new.png").rename(photos / "cat/moved.png")
    assert project.repro() == RAN, "renamed"
    (photos / "cat/moved.png").unlink()
    project.repro()
    assert raw(project) == first, "removed"
    for path in photos.rglob("*.png"):
        os.utime(path)
    assert project.repro() == NOTHING, "touched"

    moved = photos.rename(tmp_path / "elsewhere")
    assert project.repro(check=False) == NOTHING
    assert project.returncode != 0
    assert f"No such file or directory: '{photos}'" in project.output
    use_again = project.folder / "params.yaml"
    use_again.write_text(use_again.read_text().replace(str(photos), str(moved)))
    assert project.repro() == RAN
    assert raw(project) == first, "the place of the images is in no output"


def test_images_in_the_project_that_dvc_tracks(project):
    write_files(project.folder / "photos", pets(3))
    use(project, "photos")
    project.run("dvc", "add", "photos")
    assert project.repro() == RAN
    project.commit("with images")
    assert json.loads(project.run("dvc", "status", "--json")) == {}
    project.run("dvc", "exp", "run", "--temp", "--name", "other", "-S", "download.retries=1")
    assert "other" in project.run("dvc", "exp", "list")
    (project.folder / "photos/cat/0.png").unlink()
    assert project.repro() == RAN
    assert project.git("status", "--short").split() == ["M", "dvc.lock", "M", "photos.dvc"]
    remote = project.folder.parent / "remote"
    project.run("dvc", "remote", "add", "--default", "there", str(remote))
    project.commit("one less")
    project.run("dvc", "push")
    project.git("clone", "-q", str(project.folder), str(project.folder.parent / "clone"))
    clone = Project.at(project.folder.parent / "clone")
    clone.run("dvc", "pull")
    assert clone.repro() == NOTHING
    assert raw(clone) == raw(project)


def test_images_elsewhere_serve_experiments_and_a_machine_without_them_needs_none(project, tmp_path):
    photos = write_files(tmp_path / "photos", pets(3))
    use(project, photos)
    assert project.repro() == RAN
    project.commit("with images")
    project.run("dvc", "exp", "run", "--temp", "--name", "other", "-S", "download.retries=1")
    assert "other" in project.run("dvc", "exp", "list")
    photos.rename(tmp_path / "gone")
    said = project.run("dvc", "repro", "--allow-missing")
    assert "Data and pipelines are up to date" in said


def test_images_in_the_projects_own_folder_of_images(project):
    """Git tracks the folder, and not the images: an experiment in a copy says how it gets them."""
    write_files(project.folder / "images", pets(3))
    assert project.repro() == RAN
    assert read_checksummed(project.folder / "data/raw/manifest.json", Manifest, "").images.count == 9
    assert project.git("status", "--short").split() == ["??", "dvc.lock"]
    project.commit("with images")
    said = project.run("dvc", "exp", "run", "--temp", "-S", "download.retries=1", check=False)
    assert "a copy of the project needs an absolute path in download.folder, or dvc add" in said
    use(project, project.folder / "images")
    project.run("dvc", "exp", "run", "--temp", "-n", "with", "-S", "download.retries=1")
    assert "with" in project.run("dvc", "exp", "list")


def test_images_that_neither_git_nor_dvc_tracks_are_copied_for_an_experiment(project):
    write_files(project.folder / "photos", pets(3))
    use(project, "photos")
    assert project.repro() == RAN
    project.git("add", "dvc.lock", "params.yaml")
    project.git("commit", "-q", "-m", "with images")
    project.run("dvc", "exp", "run", "--temp", "-C", "photos", "-n", "copied", "-S", "download.retries=1")
    assert "copied" in project.run("dvc", "exp", "list")


def test_an_archive_in_the_project(project):
    project.run("python", "-m", "zipfile", "-c", "images/photos.zip", str(write_files(project.folder / "p", pets(2))))
    use(project, "images/photos.zip")
    assert project.repro() == RAN
    assert project.repro() == NOTHING
    with (project.folder / "images/photos.zip").open("ab") as file:
        file.write(b"x")
    assert project.repro() == RAN
