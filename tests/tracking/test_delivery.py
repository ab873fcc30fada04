"""What MLflow holds once the journals of training and evaluation are delivered to a real SQLite store."""

import json
import re
import subprocess
from pathlib import Path

import mlflow
import numpy as np
import pytest

from classifier.repository.lockfile import hash_of
from classifier.training.history import HistoryRow
from tests.recorded import (
    METRICS,
    ROWS,
    SeedsWorkspace,
    Workspace,
    all_runs,
    files,
    get_run,
    history,
    recorded,
)
from tests.samples import file_params

pytestmark = pytest.mark.usefixtures("workspace")


def check_seeds(parent):
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
    assert get_run(parent).data.tags["mlflow.classifier.chosen_seed"] == "5"


def test_each_seed_is_a_nested_run_under_one_that_carries_the_summary():
    outputs = SeedsWorkspace()
    parent = outputs.train()
    assert outputs.evaluate() == parent
    assert len(all_runs()) == 3
    check_seeds(parent)


def test_seeds_too_are_made_from_their_histories_when_no_run_has_them():
    check_seeds(SeedsWorkspace().evaluate())


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
    assert history(run_id, "network/multiply_adds") == [(0, 416_520)]
    assert files(run_id) == {
        "train/history.csv", "train/layers.csv", "train/metrics.json", "train/summary.json", "train/manifest.json",
        "evaluate/metrics.json", "logs/train.txt", "code/environment.json"
    }  # fmt: skip
    assert (run.data.tags["mlflow.source.name"], run.data.tags["mlflow.classifier.env.threads"]) == (
        "stages/train.py",
        "2",
    )
    assert run.data.tags["mlflow.classifier.test_sha256"] == outputs.data_meta.sha256["test"]


def test_seconds_of_training_stand_at_the_epochs_ends_of_each_seed_and_of_all_together():
    outputs = SeedsWorkspace()
    with recorded("train", outputs.params) as record:
        record.begin("key", {})
        for seed, seconds in ((4, 3.0), (5, 7.0)):
            record.log_row(seed, ROWS[0], 1.0)
            record.log_row(seed, ROWS[1], seconds)
        record.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories, 8.0)
    runs = {run.data.tags.get("mlflow.classifier.seed"): run.info.run_id for run in all_runs()}
    found = {seed: history(run_id, "train/seconds") for seed, run_id in runs.items()}
    assert found == {None: [(12, 8.0)], "4": [(12, 3.0)], "5": [(12, 7.0)]}


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("kind", [Workspace, SeedsWorkspace])
def test_no_metric_is_a_constant_or_a_single_dot_or_has_rounding_noise(kind, restored):
    outputs = kind()
    outputs.has_history([HistoryRow(step, step // 6, step, 0.1 + 0.2, 2.0, 2.0, 1.8, 0.5) for step in (6, 12)])
    if not restored:
        outputs.train()
    run_id = outputs.evaluate()
    for run in all_runs():
        assert history(run.info.run_id, "train/learning_rate") == [(6, 0.3), (12, 0.3)]
        assert not {"test/n", "test/confidence", "test/error_rate"} & run.data.metrics.keys()
        assert not any(name.endswith("_best") for name in run.data.metrics)
    assert ("mlflow.classifier.restored" in get_run(run_id).data.tags) == restored


@pytest.mark.parametrize("kind", [Workspace, SeedsWorkspace])
def test_a_runs_last_values_are_those_of_the_epoch_whose_weights_are_kept(kind):
    outputs = kind()
    outputs.params = outputs.params.override({"train.keep.weights": "validation_loss"})
    values = [(6, 0.9, 0.6), (12, 0.4, 0.7), (18, 0.5, 0.8)]
    outputs.has_history([HistoryRow(step, step // 6, step, 0.1, 2.0, 1.0, loss, right) for step, loss, right in values])
    outputs.train()
    for run in all_runs():
        assert (run.data.metrics["validation/loss"], run.data.metrics["validation/accuracy"]) == (0.4, 0.7)
        steps = [step for step, _ in history(run.info.run_id, "validation/loss")]
        assert steps == [6, 12, 18, 19]


def test_test_metrics_are_those_of_the_models_page_and_of_its_data():
    outputs = Workspace()
    experiment = [get_run(outputs.train()).info.experiment_id]
    outputs.evaluate()
    (model,) = mlflow.search_logged_models(experiment, output_format="list")
    (metric,) = model.metrics
    assert (metric.key, metric.value) == ("test/accuracy", METRICS["accuracy"])
    (data,) = get_run(model.source_run_id).inputs.dataset_inputs
    assert (metric.dataset_name, metric.dataset_digest) == (data.dataset.name, data.dataset.digest)
    better = "metrics.`test/accuracy` > 0.8"
    assert mlflow.search_logged_models(experiment, filter_string=better, output_format="list")


def test_a_run_is_called_what_it_is_and_described():
    outputs = Workspace()
    run_id = outputs.train()
    before = get_run(run_id)
    assert re.fullmatch(r"digits lenet5 [a-z]+-[a-z]+-\d+", before.info.run_name)
    assert "not been evaluated" in before.data.tags["mlflow.note.content"]
    outputs.evaluate()
    after = get_run(run_id)
    assert after.info.run_name == before.info.run_name.replace("lenet5", "lenet5 90.0%")
    told = after.data.tags["mlflow.note.content"]
    for part in (
        "**lenet5** trained on **digits** for 20 epochs, seed 0",
        "**90.00%**",
        "61,706 parameters (0.2 MB), 416,520 multiply-adds for an image; layers in the artifact `train/layers.csv`",
        f"reproduce {run_id[:8]}",
        "#/exp",
    ):
        assert part in told, part


def test_a_name_that_a_person_gave_stays():
    outputs = Workspace()
    run_id = outputs.train()
    mlflow.MlflowClient().update_run(run_id, name="the one for the paper")
    outputs.evaluate()
    assert get_run(run_id).info.run_name == "the one for the paper"


def test_tags_that_nobody_searches_by_are_hidden_by_mlflow():
    outputs = Workspace()
    run_id = outputs.train()
    outputs.evaluate()
    shown = {name for name in get_run(run_id).data.tags if not name.startswith("mlflow.")}
    assert shown == {"dvc.data", "dvc.model", "git.problem"}


def test_the_data_set_is_an_input_with_name_source_and_digest():
    outputs = Workspace()
    (dataset,) = get_run(outputs.train()).inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    assert json.loads(dataset.dataset.source) == {"url": "https://example.org/digits"}
    assert dataset.dataset.digest == hash_of(outputs.data)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]


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
    with pytest.raises(ValueError, match="neither divided by 255 nor normalized"):
        model.predict(images / 255)


def test_the_model_is_logged_with_the_code_of_its_stage_whenever_it_is_delivered():
    outputs = Workspace()
    with recorded("train", outputs.params) as record:
        record.begin("key", {})
        record.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
        with (record.journal.folder / "files/model-code/classifier/serving/pyfunc.py").open("a") as code:
            code.write("# as it was then\n")
    (output,) = get_run(record.id).outputs.model_outputs
    logged = Path(mlflow.artifacts.download_artifacts(f"models:/{output.model_id}"))
    assert (logged / "code/classifier/serving/pyfunc.py").read_text().endswith("# as it was then\n")


def test_nothing_logged_is_a_pickle(workspace):
    Workspace().train()
    logged = [path for path in (workspace / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in logged)
    assert not [path for path in logged if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]


def test_evaluate_makes_a_run_from_history_when_the_store_has_none():
    outputs = Workspace()
    outputs.evaluate()
    (run,) = all_runs()
    assert run.data.tags["mlflow.classifier.restored"] == "true"
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


@pytest.mark.parametrize(("variable", "value"), [("DVC_EXP_NAME", "other-exp"), ("MLFLOW_PARENT_RUN_ID", "f" * 32)])
def test_a_run_of_another_experiment_or_sweep_with_the_same_weights_is_left_alone(monkeypatch, variable, value):
    outputs = Workspace()
    monkeypatch.setenv(variable, value)
    other = outputs.train()
    monkeypatch.delenv(variable)
    assert outputs.evaluate() != other


def test_experiment_name_and_baseline_are_tags_and_the_runs_name(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-duck")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc123")
    run = get_run(Workspace().train())
    assert run.info.run_name == "digits lenet5 wavy-duck"
    assert (run.data.tags["dvc.exp.name"], run.data.tags["mlflow.classifier.dvc_exp_baseline"]) == (
        "wavy-duck",
        "abc123",
    )


def test_git_commit_dirty_state_and_the_diff_are_recorded(workspace):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True, cwd=workspace)

    (workspace / ".gitignore").write_text("/.pipeline/\n/mlflow.db*\n/mlartifacts/\n/data/\n/models/\n/reports/\n")
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
    monkeypatch.setattr(mlflow, "log_metric", None)
    with recorded("train", file_params()) as record:
        record.begin("key", {})
        for step in range(2500):
            record.log_row(0, HistoryRow(step, 1, step, 0.1, 0.5))
    assert [count for count in calls if count] == [1000] * 5
    assert len(history(record.id, "train/running_loss")) == 2500


def test_the_store_lies_in_the_main_repository_when_an_experiment_runs_elsewhere(workspace, monkeypatch, tmp_path):
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run_id = Workspace().train()
    assert (workspace / "mlflow.db").exists()
    assert get_run(run_id).info.artifact_uri.startswith((workspace / "mlartifacts").as_uri())
    assert not list(elsewhere.glob("ml*"))
