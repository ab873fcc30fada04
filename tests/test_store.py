"""The store: where it lies, that it survives being moved, and what is said when it cannot be reached."""

import os
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest

from classifier.recording.store import shown_uri, store_uri
from classifier.tracking import delivery as tracking
from tests.recorded import Workspace, forget_store, get_run
from tests.samples import ROOT

pytestmark = pytest.mark.usefixtures("workspace")


def test_store_and_experiment_follow_mlflows_variables(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'elsewhere.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tracking.open_store()
    assert (workspace / "elsewhere.db").exists()
    assert not (workspace / "mlflow.db").exists()
    assert mlflow.get_experiment_by_name("mine") is not None


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_old_runs_open_with_their_artifacts_after_the_folder_was_moved_or_copied(workspace, monkeypatch, how):
    project = workspace / "first place"
    project.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(project)
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


def test_addresses_that_are_not_the_projects_are_left_alone_when_it_moves(workspace):
    mlflow.set_tracking_uri(store_uri())
    elsewhere = mlflow.create_experiment("nas", artifact_location="s3://bucket/mlartifacts")
    tracking.open_store()
    address = workspace / "mlartifacts/address.txt"
    address.write_text(address.read_text().replace("mlartifacts", "%20_before"))
    tracking.open_store()
    assert mlflow.get_experiment(elsewhere).artifact_location == "s3://bucket/mlartifacts"


def test_a_relative_sqlite_store_lies_in_the_project_and_so_do_its_artifacts(workspace, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    experiment = mlflow.get_experiment(tracking.open_store())
    assert (workspace / "team.db").exists()
    assert experiment.artifact_location == (workspace / "mlartifacts").as_uri()


def test_a_server_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OSError, match=r"http://127.0.0.1:9 cannot be used: .*unset MLFLOW_TRACKING_URI"):
        tracking.open_store()


@pytest.mark.slow
def test_processes_that_start_together_on_a_fresh_store_all_succeed(workspace):
    script = "from classifier import tracking; print(tracking.open_store())"
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
