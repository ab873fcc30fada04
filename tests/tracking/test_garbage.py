"""Runs that were deleted in MLflow are removed permanently with all their files, and no others are."""

import mlflow
import pytest

from classifier.errors import UserError
from classifier.tracking.garbage import collect
from tests.recorded import ReplicaWorkspace, Workspace, all_runs, get_run

pytestmark = pytest.mark.usefixtures("workspace")


def files_of(workspace, run_id):
    """The files of the run and of its model."""
    (output,) = get_run(run_id).outputs.model_outputs
    folders = (workspace / "mlartifacts" / run_id, workspace / "mlartifacts/models" / output.model_id)
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in found} >= {"weights.safetensors", "metrics.json"}
    return found


def test_the_bytes_of_a_deleted_run_and_of_its_model_go_and_no_others(workspace):
    kept, gone = Workspace(), Workspace(seed=1)
    kept_id, gone_id = (outputs.train() for outputs in (kept, gone))
    kept.evaluate()
    gone.evaluate()
    kept_files, gone_files = (files_of(workspace, run_id) for run_id in (kept_id, gone_id))
    (output,) = get_run(gone_id).outputs.model_outputs
    mlflow.MlflowClient().delete_run(gone_id)
    collected = collect()
    assert (collected.runs, collected.models) == ([gone_id], [output.model_id])
    assert not [path for path in gone_files if path.exists()]
    assert not [path for path in kept_files if not path.exists()]
    assert [run.info.run_id for run in all_runs()] == [kept_id]
    collected = collect()
    assert (collected.runs, collected.models) == ([], [])


def test_nothing_goes_while_a_registered_version_is_of_a_deleted_run(workspace):
    run_id = Workspace().train()
    (output,) = get_run(run_id).outputs.model_outputs
    mlflow.register_model(f"models:/{output.model_id}", "classifier")
    mlflow.MlflowClient().delete_run(run_id)
    before = sorted((workspace / "mlartifacts").rglob("*"))
    with pytest.raises(UserError, match=f"run {run_id} .* is version 1 of classifier: .* restore --run-id {run_id}"):
        collect()
    assert sorted((workspace / "mlartifacts").rglob("*")) == before


def test_a_deleted_experiment_goes_with_its_runs(workspace, monkeypatch):
    run_id = ReplicaWorkspace().train()
    mlflow.MlflowClient().delete_experiment(get_run(run_id).info.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert len(collect().runs) == 3
    assert not [path for path in (workspace / "mlartifacts").rglob("*") if path.is_file()]


def test_a_servers_runs_are_for_its_owner(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"on a server, http://127.0.0.1:9: where its database is"):
        collect()
