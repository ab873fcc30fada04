"""Runs that were deleted in MLflow are removed permanently with all their files, and no others are."""

import json
import subprocess

import mlflow
import pytest
from typer.testing import CliRunner

from classifier.commands.application import application
from classifier.errors import UserError
from classifier.tracking.garbage import Garbage, find_garbage, remove
from tests.recorded import SeedsWorkspace, Workspace, all_runs, get_run

pytestmark = pytest.mark.usefixtures("workspace")


def files_of(workspace, run_id):
    """The files of the run and of its model."""
    (output,) = get_run(run_id).outputs.model_outputs
    folders = (workspace / "mlartifacts" / run_id, workspace / "mlartifacts/models" / output.model_id)
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in found} >= {"weights.safetensors", "metrics.json"}
    return found


def test_the_bytes_of_a_deleted_run_and_of_its_model_go_and_no_others(workspace, monkeypatch):
    kept, gone = Workspace(), Workspace(seed=1)
    kept_id, gone_id = (outputs.train() for outputs in (kept, gone))
    kept.evaluate()
    gone.evaluate()
    kept_files, gone_files = (files_of(workspace, run_id) for run_id in (kept_id, gone_id))
    (output,) = get_run(gone_id).outputs.model_outputs
    mlflow.MlflowClient().delete_run(gone_id)
    garbage = find_garbage()
    assert garbage == Garbage({gone_id: "classifier"}, [output.model_id], [])
    assert not [path for path in gone_files if not path.exists()]
    seen, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: [seen.extend(command), run(command, **options)][1]
    )
    remove(garbage)
    assert seen
    assert "mlflow.db" not in " ".join(map(str, seen))  # the store's address may contain a password
    assert not [path for path in gone_files if path.exists()]
    assert not [path for path in kept_files if not path.exists()]
    assert [run.info.run_id for run in all_runs()] == [kept_id]
    assert find_garbage() == Garbage({}, [], [])


def test_nothing_goes_while_a_registered_version_is_of_a_deleted_run(workspace):
    run_id = Workspace().train()
    (output,) = get_run(run_id).outputs.model_outputs
    mlflow.register_model(f"models:/{output.model_id}", "classifier")
    mlflow.MlflowClient().delete_run(run_id)
    before = sorted((workspace / "mlartifacts").rglob("*"))
    with pytest.raises(UserError, match=f"run {run_id} .* is version 1 of classifier: .* restore --run-id {run_id}"):
        find_garbage()
    assert sorted((workspace / "mlartifacts").rglob("*")) == before


@pytest.mark.slow
def test_a_deleted_experiment_goes_with_its_runs(workspace, monkeypatch):
    run_id = SeedsWorkspace().train()
    mlflow.MlflowClient().delete_experiment(get_run(run_id).info.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    garbage = find_garbage()
    assert [*garbage.runs.values()] == ["classifier"] * 3
    assert garbage.experiments == ["classifier"]
    remove(garbage)
    assert not [path for path in (workspace / "mlartifacts").rglob("*") if path.is_file()]


def test_a_servers_runs_are_for_its_owner(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"on a server, http://127.0.0.1:9: run classifier gc on the machine"):
        find_garbage()


@pytest.mark.slow
def test_the_command_lists_and_removes_only_when_told(workspace):
    run_id = Workspace().train()
    mlflow.MlflowClient().delete_run(run_id)
    listed = CliRunner().invoke(application, ["gc"]).stdout
    assert listed.splitlines() == [
        f"run {run_id} of the experiment 'classifier'",
        "classifier gc --yes permanently removes 1 runs, 1 models, 0 experiments",
    ]
    assert [*find_garbage().runs] == [run_id]
    answer = json.loads(CliRunner().invoke(application, ["gc", "--yes", "--json"]).stdout)
    assert (answer["removed"], [*answer["runs"]]) == (True, [run_id])
    assert not find_garbage().runs
