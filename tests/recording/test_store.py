"""The store: where it is, and that it survives being moved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sqlalchemy import make_url

from classifier.recording.store import database_of, is_known_store, known_store, shown_uri, sqlite_uri, store_uri
from classifier.tracking import delivery as tracking
from tests.recorded import Workspace, forget_store, get_run, write_store, written
from tests.samples import ROOT, file_params

pytestmark = pytest.mark.usefixtures("workspace")


def test_store_and_experiment_follow_mlflows_variables(workspace, monkeypatch):
    (workspace / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'elsewhere.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tracking.open_store()
    assert (workspace / "elsewhere.db").exists()
    assert not (workspace / "mlflow.db").exists()
    assert mlflow.get_experiment_by_name("mine") is not None


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_old_runs_open_with_their_artifacts_after_the_folder_was_moved_or_copied(workspace, monkeypatch, how):
    project = workspace / "first place"
    enter(monkeypatch, project)
    run_id = Workspace().train()
    monkeypatch.chdir(workspace)
    moved = workspace / "second ü_%place"
    how(project, moved)
    monkeypatch.setenv("DVC_ROOT", str(moved))
    forget_store()
    tracking.open_store()
    run = get_run(run_id)
    assert run.info.artifact_uri.startswith((moved / "mlartifacts").as_uri())
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/logs/train.txt")
    assert text == "[1,    10] loss: 2.100\n"
    (model,) = run.outputs.model_outputs
    shutil.rmtree(project, ignore_errors=True)  # so that a copy cannot lean on the original
    mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(np.zeros((1, 1, 32, 32), np.uint8))


def a_run():
    """A run with one artifact, without training."""
    experiment, client = tracking.open_store(), mlflow.MlflowClient()
    run_id = client.create_run(experiment).info.run_id
    client.log_text(run_id, "hello", "code/note.txt")
    return run_id


def text_of(run_id):
    return mlflow.artifacts.load_text(f"{get_run(run_id).info.artifact_uri}/code/note.txt")


def enter(monkeypatch, folder):
    """Make `folder` the project."""
    folder.mkdir(exist_ok=True)
    write_store(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.chdir(folder)
    forget_store()


def use(monkeypatch, uri):
    forget_store()
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


@pytest.mark.parametrize("uris", [["sqlite:///runs.db"], ["sqlite:///stores/runs.db"], ["", "sqlite:///runs.db"]])
def test_every_store_of_a_project_that_moves_keeps_its_artifacts(workspace, monkeypatch, uris):
    """Also where one of two is opened first: each has a note of its own."""
    before = workspace / "before"
    enter(monkeypatch, before)
    runs = {}
    for uri in uris:
        use(monkeypatch, uri)
        runs[uri] = a_run()
    monkeypatch.chdir(workspace)
    enter(monkeypatch, Path(shutil.move(before, workspace / "after")))
    for uri, run_id in runs.items():
        use(monkeypatch, uri)
        tracking.open_store()
        assert text_of(run_id) == "hello"
        assert text_of(a_run()) == "hello"
    assert not before.exists()


def test_a_store_that_was_last_used_by_an_earlier_version_moves_too(workspace, monkeypatch):
    """Which noted the address of the artifacts beside them."""
    enter(monkeypatch, workspace / "before")
    run_id = a_run()
    Path("mlflow.db.home").unlink()
    Path("mlartifacts/address.txt").write_text((workspace / "before/mlartifacts").as_uri())
    monkeypatch.chdir(workspace)
    enter(monkeypatch, Path(shutil.move("before", workspace / "after")))
    tracking.open_store()
    assert text_of(run_id) == "hello"


def test_a_store_outside_projects_keeps_the_artifacts_of_all_beside_itself_and_moves_with_them(workspace, monkeypatch):
    shared, runs = workspace / "shared", []
    shared.mkdir()
    for name in ("a", "b"):
        enter(monkeypatch, workspace / name)
        use(monkeypatch, f"sqlite:///{shared}/runs.db")
        runs.append(a_run())
        assert [path.name for path in Path().iterdir()] == ["mlflow.db"]  # as `enter` made it
    assert {path.name for path in (shared / "mlartifacts").iterdir()} == set(runs)
    moved = Path(shutil.move(shared, workspace / "moved"))
    use(monkeypatch, f"sqlite:///{moved}/runs.db")
    tracking.open_store()
    assert [text_of(run_id) for run_id in runs] == ["hello", "hello"]


def test_the_store_of_another_project_keeps_its_artifacts_there(workspace, monkeypatch):
    ours, theirs = workspace / "ours", workspace / "theirs"
    (theirs / ".dvc").mkdir(parents=True)
    enter(monkeypatch, theirs)
    use(monkeypatch, "sqlite:///stores/runs.db")
    tracking.open_store()
    enter(monkeypatch, ours)
    use(monkeypatch, f"sqlite:///{theirs}/stores/runs.db")
    assert get_run(a_run()).info.artifact_uri.startswith((theirs / "mlartifacts").as_uri())


def into_a_subfolder_of_itself(workspace, monkeypatch):
    """Move the project `workspace/a` to `workspace/a/new`."""
    monkeypatch.chdir(workspace)
    shutil.move("a", workspace / "moving")
    (workspace / "a").mkdir()
    enter(monkeypatch, Path(shutil.move("moving", workspace / "a/new")))


def test_a_new_database_in_a_moved_project_has_a_note_of_its_own(workspace, monkeypatch):
    """Not that of the database which was deleted."""
    enter(monkeypatch, workspace / "a")
    tracking.open_store()
    Path("mlflow.db").unlink()
    into_a_subfolder_of_itself(workspace, monkeypatch)
    run_id = a_run()
    for _ in range(2):
        forget_store()
        tracking.open_store()
        assert text_of(run_id) == "hello"


def test_addresses_that_a_killed_process_has_updated_are_not_updated_again(workspace, monkeypatch):
    enter(monkeypatch, workspace / "a")
    run_id, before = a_run(), Path("mlflow.db.home").read_text()
    into_a_subfolder_of_itself(workspace, monkeypatch)
    for _ in range(2):
        forget_store()
        tracking.open_store()
        assert text_of(run_id) == "hello"
        Path("mlflow.db.home").write_text(before)  # as if it had been killed before it noted the place


NAMES = ["lenet%20main", "what?", "a#b", "a b", "ü ñ 猫", "50%", "%3F"]


@pytest.mark.parametrize("name", NAMES)
def test_a_project_in_a_folder_of_any_name_has_its_store_and_its_artifacts_inside(workspace, monkeypatch, name):
    folder = workspace / name
    enter(monkeypatch, folder)
    run_id = a_run()
    assert text_of(run_id) == "hello"
    assert (folder / "mlflow.db").is_file()
    assert (folder / "mlartifacts" / run_id / "artifacts/code/note.txt").is_file()
    assert {path.name for path in workspace.iterdir()} == {name, "mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    assert (store_uri(), known_store()) == (mlflow.get_tracking_uri(), "sqlite:///./mlflow.db")


@pytest.mark.parametrize("name", NAMES)
def test_an_address_gives_its_path_back_to_us_and_to_sqlalchemy(workspace, name):
    path = workspace / name / "deeper" / f"{name}.db"
    assert database_of(sqlite_uri(path)) == path
    assert make_url(sqlite_uri(path)).database == str(path)


def test_addresses_that_are_not_the_projects_are_left_alone_when_it_moves(workspace):
    mlflow.set_tracking_uri(store_uri())
    elsewhere = mlflow.create_experiment("nas", artifact_location="s3://bucket/mlartifacts")
    tracking.open_store()
    Path("mlflow.db.home").write_text(f"{workspace.as_uri()}_before")
    tracking.open_store()
    assert Path("mlflow.db.home").read_text() == workspace.as_uri()
    assert mlflow.get_experiment(elsewhere).artifact_location == "s3://bucket/mlartifacts"


def test_a_note_that_could_not_be_followed_stays(workspace):
    """An older address is what the next correction starts from."""
    tracking.open_store()
    Path("mlflow.db.home").write_text("file:///before")
    Path("mlflow.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(OSError, match="damaged"):
        tracking.open_store()
    assert Path("mlflow.db.home").read_text() == "file:///before"


def test_a_relative_sqlite_store_lies_in_the_project_and_so_do_its_artifacts(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    experiment = mlflow.get_experiment(tracking.open_store())
    assert (workspace / "team.db").exists()
    assert experiment.artifact_location == (workspace / "mlartifacts").as_uri()


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("", "sqlite:///./mlflow.db"),
        ("sqlite:///stores/../runs.db", "sqlite:///./runs.db"),
        ("https://Team.example.org:5000/mlflow/", "https://team.example.org:5000/mlflow"),
        ("https://ann:secret@team.example.org/", "https://team.example.org"),
        ("postgresql://ann:secret@host/db", "postgresql://host/db"),
    ],
)
def test_a_journal_knows_its_store_however_its_address_was_written(monkeypatch, said, known):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", said)
    assert known_store() == known
    assert is_known_store(known)
    assert is_known_store(f"{known}/") == known.startswith("http")


@pytest.mark.parametrize(("set_to", "name"), [(None, "classifier"), ("", "classifier"), ("mine", "mine")])
def test_an_empty_experiment_name_is_none(workspace, monkeypatch, set_to, name):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    if set_to is not None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", set_to)
    assert mlflow.get_experiment(tracking.open_store()).name == name
    with written("train", file_params()) as record:
        record.begin("key", {})
    assert record.journal.begin()["experiment"] == name


def test_an_experiment_that_was_deleted_is_named_with_the_command_that_brings_it_back(workspace):
    run_id = a_run()
    mlflow.MlflowClient().delete_experiment(get_run(run_id).info.experiment_id)
    with pytest.raises(OSError, match="experiment 'classifier' was deleted") as error:
        tracking.open_store()
    command = str(error.value).partition("deleted in MLflow: ")[2].split()
    forget_store()
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    assert tracking.open_store() == get_run(run_id).info.experiment_id


@pytest.mark.slow
def test_processes_that_start_together_on_a_fresh_store_all_succeed(workspace):
    (workspace / "mlflow.db").unlink()
    script = "from classifier.tracking.connection import open_store; print(open_store())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) for _ in range(4)
    ]
    answers = {(process.communicate()[0], process.returncode) for process in started}
    assert len(answers) == 1
    assert next(iter(answers))[1] == 0


def test_an_address_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host:5000/path")
    assert shown_uri() == "https://host:5000/path"
