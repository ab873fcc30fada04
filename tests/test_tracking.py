"""What MLflow holds after training and evaluation, against a real SQLite store."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest

from classifier import tracking
from classifier.history import Row, write_history
from classifier.model_dir import build, write_model
from classifier.store import store_uri
from classifier.training_report import write_training
from tests.samples import ROOT, file_params, write_digits

ROWS = [Row(10, 1, 320, 0.05, 2.1), Row(12, 1, 340, 0.04, 1.9, 2.0, 1.8, 0.5)]
METRICS = {"accuracy": 0.9, "n": 57}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """An empty project with a store of its own; MLflow's globals are reset around each test."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


class Workspace:
    """Outputs as the stages write them, and the stages' two halves of the record."""

    def __init__(self, seed=0):
        self.params = file_params()
        self.data, self.model, self.training, self.reports = (
            Path(name) for name in ("data/normalized", "models/classifier", "reports/train", "reports/evaluate")
        )
        self.data_meta = write_digits(self.data)
        self.meta = write_model(self.model, {seed: build(self.data_meta, seed)}, seed, self.data_meta)
        write_history(self.training / "history.csv", ROWS)
        self.reports.mkdir(parents=True, exist_ok=True)
        (self.reports / "metrics.json").write_text(json.dumps(METRICS))

    def train(self):
        with tracking.training_run(self.params) as run:
            run.log_data(self.data, self.data_meta)
            for row in ROWS:
                run.log_row(row)
            run.log.append("[1,    10] loss: 2.100")
            run.log_training(self.model, self.meta, self.training, {0: ROWS})
        return run.id

    def evaluate(self, params=None):
        arguments = (self.data, self.data_meta, self.model, self.meta, self.training)
        with tracking.evaluation_run(params or self.params, *arguments) as run:
            run.log_evaluation(METRICS, {}, self.reports, self.model)
        return run.id


class ReplicaWorkspace(Workspace):
    """The same for two seeds."""

    def __init__(self):
        super().__init__()
        train = self.params.train.model_copy(update={"replicas": 2, "seed": 4})
        self.params = self.params.model_copy(update={"train": train})
        models = {4: build(self.data_meta, 4), 5: build(self.data_meta, 5)}
        self.meta = write_model(self.model, models, 5, self.data_meta)
        self.histories = {4: ROWS, 5: [replace(row, running_loss=1.0, validation_accuracy=0.7) for row in ROWS]}
        write_training(self.training, self.histories, 5, 61706)

    def train(self):
        with tracking.training_run(self.params) as run:
            run.log_data(self.data, self.data_meta)
            for seed, rows in self.histories.items():
                for row in rows:
                    run.of_seed(seed).log_row(row)
            run.log_training(self.model, self.meta, self.training, self.histories)
        return run.id

    def evaluate(self, params=None):
        arguments = (self.data, self.data_meta, self.model, self.meta, self.training)
        with tracking.evaluation_run(self.params, *arguments) as run:
            run.log_evaluation(METRICS, {4: {"accuracy": 0.8}, 5: {"accuracy": 0.9}}, self.reports, self.model)
        return run.id


def check_replicas(parent):
    runs = {run.data.params["train.seed"]: run for run in all_runs() if run.data.tags.get("mlflow.parentRunId")}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    assert set(runs) == {"4", "5"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert history(runs["4"].info.run_id, "train/running_loss") == [(10, 2.1), (12, 1.9)]
    assert history(runs["5"].info.run_id, "train/running_loss") == [(10, 1.0), (12, 1.0)]
    assert [history(runs[seed].info.run_id, "test/accuracy") for seed in "45"] == [[(0, 0.8)], [(0, 0.9)]]
    metrics = get_run(parent).data.metrics
    assert metrics["validation/accuracy_mean"] == pytest.approx(0.6)
    assert metrics["validation/accuracy_std"] == pytest.approx(0.141421, rel=1e-4)
    assert metrics["validation/accuracy_low"] < 0.6 < metrics["validation/accuracy_high"]
    assert history(parent, "train/running_loss") == [(10, 1.0), (12, 1.0)]  # those of the chosen seed
    assert get_run(parent).data.tags["replicas.chosen_seed"] == "5"


def test_each_replica_is_a_nested_run_under_one_that_carries_the_spread():
    outputs = ReplicaWorkspace()
    parent = outputs.train()
    assert outputs.evaluate() == parent
    assert len(all_runs()) == 3
    check_replicas(parent)


def test_replicas_too_are_made_from_their_histories_when_no_run_has_them():
    check_replicas(ReplicaWorkspace().evaluate())


def test_replicas_end_as_their_parent_does():
    outputs = ReplicaWorkspace()

    def fail():
        with tracking.training_run(outputs.params) as run:
            run.of_seed(4).log_row(ROWS[0])
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert {run.info.status for run in all_runs()} == {"FAILED"}


def get_run(run_id):
    return mlflow.MlflowClient().get_run(run_id)


def all_runs():
    client = mlflow.MlflowClient()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def history(run_id, key):
    return [(point.step, point.value) for point in mlflow.MlflowClient().get_metric_history(run_id, key)]


def files(run_id, folder=None):
    found = mlflow.MlflowClient().list_artifacts(run_id, folder)
    return {name for file in found for name in (files(run_id, file.path) if file.is_dir else {file.path})}


def test_train_and_evaluate_share_one_run():
    outputs = Workspace()
    run_id = outputs.train()
    assert outputs.evaluate() == run_id
    assert len(all_runs()) == 1


def test_the_run_holds_params_curves_metrics_and_reports():
    outputs = Workspace()
    run_id = outputs.train()
    outputs.evaluate()
    run = get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in outputs.params.flat().items()}
    assert history(run_id, "train/running_loss") == [(10, 2.1), (12, 1.9)]
    assert history(run_id, "train/learning_rate") == [(10, 0.05), (12, 0.04)]
    assert history(run_id, "train/loss") == [(12, 2.0)]
    assert history(run_id, "validation/loss") == [(12, 1.8)]
    assert history(run_id, "validation/accuracy") == [(12, 0.5)]
    assert history(run_id, "test/accuracy") == [(0, 0.9)]
    assert files(run_id) == {"train/history.csv", "evaluate/metrics.json", "logs/train.txt"}


def test_the_data_set_is_an_input_with_name_source_and_digest():
    outputs = Workspace()
    (dataset,) = get_run(outputs.train()).inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert json.loads(dataset.dataset.source) == {"url": "https://example.org/digits"}
    assert dataset.dataset.digest == outputs.data_meta.sha256["train"][:32]  # without dvc.lock
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]


def test_dvcs_hashes_of_data_and_model_come_from_dvc_lock():
    outputs = Workspace()
    lock = "schema: '2.0'\nstages:\n  normalize:\n    outs:\n    - path: data/normalized\n      md5: {}\n"
    Path("dvc.lock").write_text(
        lock.format("0123.dir") + "  train:\n    outs:\n    - path: models/classifier\n      md5: 4567.dir\n"
    )
    run_id = outputs.train()
    assert "dvc.model" not in get_run(run_id).data.tags  # while train runs, the lock holds the model before
    outputs.evaluate()
    run = get_run(run_id)
    assert run.data.tags["dvc.data"] == run.inputs.dataset_inputs[0].dataset.digest == "0123.dir"
    assert run.data.tags["dvc.model"] == "4567.dir"


def test_the_model_takes_raw_pixels_and_returns_names_and_probabilities():
    outputs = Workspace()
    run = get_run(outputs.train())
    model = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 32, 32), dtype=np.uint8)
    table = model.predict(images)
    assert list(table.columns) == ["predicted", *map(str, range(10))]
    probabilities = table.drop(columns="predicted")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities.idxmax(axis=1) == table["predicted"]).all()
    assert model.input_example.shape == (2, 1, 32, 32)
    with pytest.raises(mlflow.MlflowException, match="schema"):
        model.predict(images.astype(np.float32))


def test_nothing_logged_is_a_pickle(workspace):
    Workspace().train()
    logged = [path for path in (workspace / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in logged)
    assert not [path for path in logged if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]


def test_evaluate_makes_a_run_from_history_when_the_store_was_deleted(workspace):
    # Another process trains: within one, MLflow would keep the deleted file open.
    script = "from tests.test_tracking import Workspace; Workspace().train()"
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    (workspace / "mlflow.db").unlink()
    outputs = Workspace()
    outputs.evaluate()
    (run,) = all_runs()
    assert run.data.tags["train.restored"] == "true"
    assert history(run.info.run_id, "train/running_loss") == [(10, 2.1), (12, 1.9)]
    assert run.data.metrics["test/accuracy"] == 0.9
    assert len(run.outputs.model_outputs) == 1
    assert run.data.params == {key: str(value) for key, value in outputs.params.flat().items()}


def test_evaluation_of_another_kind_gets_a_run_of_its_own():
    outputs = Workspace()
    first = outputs.train()
    outputs.evaluate()
    changed = outputs.params.model_copy(
        update={"evaluate": outputs.params.evaluate.model_copy(update={"confidence": 0.9})}
    )
    second = outputs.evaluate(changed)
    assert second != first
    assert get_run(first).data.params["evaluate.confidence"] == "0.95"
    assert history(first, "test/accuracy") == [(0, 0.9)]
    assert get_run(second).data.params["evaluate.confidence"] == "0.9"


def test_an_evaluation_that_was_killed_is_completed_without_doubled_points(monkeypatch):
    outputs = Workspace()
    run_id = outputs.train()
    monkeypatch.setattr(tracking, "dvc_hash", lambda path: 1 / 0)  # dies after the metrics were sent
    with pytest.raises(ZeroDivisionError):
        outputs.evaluate()
    assert get_run(run_id).info.status == "FAILED"
    monkeypatch.setattr(tracking, "dvc_hash", lambda path: None)
    assert "ZeroDivisionError" in get_run(run_id).data.tags["error"]
    assert outputs.evaluate() == run_id
    assert "error" not in get_run(run_id).data.tags
    assert history(run_id, "test/accuracy") == [(0, 0.9)]
    assert get_run(run_id).info.status == "FINISHED"


def test_a_run_of_another_experiment_with_the_same_weights_is_left_alone(monkeypatch):
    outputs = Workspace()
    monkeypatch.setenv("DVC_EXP_NAME", "other-exp")
    other = outputs.train()
    monkeypatch.delenv("DVC_EXP_NAME")
    assert outputs.evaluate() != other


def test_experiment_name_and_baseline_are_tags_and_the_runs_name(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-duck")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc123")
    run = get_run(Workspace().train())
    assert run.info.run_name == "wavy-duck"
    assert (run.data.tags["dvc.exp.name"], run.data.tags["dvc.exp.baseline"]) == ("wavy-duck", "abc123")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("loss is nan"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_run_that_does_not_end_well_says_so(error, status):
    outputs = Workspace()

    def fail():
        with tracking.training_run(outputs.params) as run:
            run.log_row(ROWS[0])
            raise error

    with pytest.raises(type(error)):
        fail()
    (ended,) = all_runs()
    assert ended.info.status == status
    assert history(ended.info.run_id, "train/running_loss") == [(10, 2.1)]  # what was reported before is not lost
    assert ended.data.tags["error"] == f"{type(error).__name__}: {error}"
    log = mlflow.artifacts.load_text(f"runs:/{ended.info.run_id}/logs/train.txt")
    assert "Traceback" in log
    assert log.endswith(f"{type(error).__name__}: {error}".removesuffix(": ") + "\n\n")


def test_git_commit_dirty_state_and_the_diff_are_recorded(workspace):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True, cwd=workspace)

    (workspace / ".gitignore").write_text("/mlflow.db*\n/mlartifacts/\n/data/\n/models/\n/reports/\n")
    (workspace / "code.py").write_text("one\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    outputs = Workspace()
    clean = get_run(outputs.train())
    assert clean.data.tags["git.dirty"] == "false"
    (workspace / "code.py").write_text("two\n")
    (workspace / "new ü.py").write_bytes(b"\xff\n")
    run = get_run(outputs.train())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=True, text=True).stdout.strip()
    assert (run.data.tags["git.commit"], run.data.tags["git.dirty"]) == (head, "true")
    patch = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="code/uncommitted.diff"))
    clone = workspace / "clone"
    git("clone", "-q", str(workspace), str(clone))
    subprocess.run(["git", "apply", str(patch)], check=True, cwd=clone)
    assert (clone / "code.py").read_text() == "two\n"
    assert (clone / "new ü.py").read_bytes() == b"\xff\n"
    status = subprocess.run(["git", "diff", "--cached"], capture_output=True, check=True, cwd=workspace)
    assert status.stdout == b""  # the person's index was left alone


def test_metrics_travel_in_batches(monkeypatch):
    """2,500 rows of 2 values: 5 calls of at most 1,000, not 5,000 calls."""
    calls = []
    original = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "log_batch",
        lambda self, *a, **k: (calls.append(len(k.get("metrics") or ())), original(self, *a, **k)),
    )
    monkeypatch.setattr(tracking, "FLUSH_S", 3600)
    monkeypatch.setattr(mlflow, "log_metric", None)
    with tracking.training_run(file_params()) as run:
        for step in range(2500):
            run.log_row(Row(step, 1, step, 0.1, 0.5))
    assert [count for count in calls if count] == [1000] * 5
    assert len(history(run.id, "train/running_loss")) == 2500


def test_system_metrics_are_recorded(monkeypatch):
    monkeypatch.setattr(tracking, "SYSTEM_METRICS_S", 0.1)
    with tracking.training_run(file_params()) as run:
        for _ in range(100):
            if any(name.startswith("system/cpu") for name in get_run(run.id).data.metrics):
                break
            time.sleep(0.05)
    assert "system/cpu_utilization_percentage" in get_run(run.id).data.metrics


def test_store_and_experiment_follow_mlflows_variables(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'elsewhere.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tracking.open_store()
    assert (workspace / "elsewhere.db").exists()
    assert not (workspace / "mlflow.db").exists()
    assert mlflow.get_experiment_by_name("mine") is not None


def test_the_store_lies_in_the_main_repository_when_an_experiment_runs_elsewhere(workspace, monkeypatch, tmp_path):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run_id = Workspace().train()
    assert (workspace / "mlflow.db").exists()
    assert get_run(run_id).info.artifact_uri.startswith((workspace / "mlartifacts").as_uri())
    assert not list(elsewhere.glob("ml*"))


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
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
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


def test_what_a_killed_process_left_running_is_marked_failed():
    script = (
        "import os; from classifier import tracking; from tests.samples import file_params\n"
        "with tracking.training_run(file_params()): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    tracking.open_store()
    (killed,) = all_runs()
    assert killed.info.status == "RUNNING"
    with tracking.training_run(file_params()) as alive:
        assert get_run(killed.info.run_id).info.status == "FAILED"
        assert "killed, or out of memory" in get_run(killed.info.run_id).data.tags["error"]
        tracking._end_dead_runs(tracking.open_store())
        assert get_run(alive.id).info.status == "RUNNING"


def test_metrics_wait_when_the_store_fails_in_the_middle(monkeypatch, capsys):
    original, broken = mlflow.MlflowClient.log_batch, [False]

    def log_batch(self, *arguments, **keywords):
        if broken[0]:
            raise mlflow.MlflowException("the database is locked\nlong story")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(tracking, "FLUSH_S", 0)
    with tracking.training_run(file_params()) as run:
        broken[0] = True
        run.log_row(ROWS[0])
        broken[0] = False
        assert "MLflow: the database is locked; metrics wait" in capsys.readouterr().err
    assert history(run.id, "train/running_loss") == [(10, 2.1)]


def test_a_run_never_ends_finished_when_its_last_metrics_could_not_be_sent(monkeypatch):
    def fail(*arguments, **keywords):
        raise mlflow.MlflowException("gone")

    def record():
        with tracking.training_run(file_params()) as run:
            run.log_row(ROWS[0])
            monkeypatch.setattr(tracking.Run, "flush", fail)

    with pytest.raises(mlflow.MlflowException, match="gone"):
        record()
    (run,) = all_runs()
    assert run.info.status == "FAILED"


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
