"""The whole pipeline as a person runs it: real git, DVC, MLflow and digits, in a fresh clone."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from classifier.arithmetic import is_x86
from tests.projects import OUTPUTS, Project


@pytest.fixture(scope="module")
def project(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of `reproduced`; the tests of this module use it in their order."""
    return reproduced.copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def quick(tmp_path: Path) -> Project:
    """A clone of its own with one epoch of training, not yet reproduced."""
    project = Project(tmp_path)
    project.edit_params("epochs: 20", "epochs: 1")
    project.commit("quick")
    return project


def test_default_reaches_97_percent_and_writes_exactly_these_files(project):
    assert project.metrics()["accuracy"] >= 0.97
    assert {out: {path.name for path in (project.folder / out).iterdir()} for out in OUTPUTS} == OUTPUTS
    assert project.git("status", "--porcelain") == ""


def test_training_prints_the_tutorials_lines(project):
    lines = project.output.splitlines()
    assert [line for line in lines if line.startswith("[1,    10] loss: 2.")]
    assert "digits: accuracy 9" in project.output


def test_one_run_holds_everything_and_its_data_and_model_have_dvcs_hashes(project):
    assert project.query("SELECT status FROM runs") == [("FINISHED",)]
    lock = (project.folder / "dvc.lock").read_text()
    for key in ("dvc.data", "dvc.model"):
        (digest,) = project.run_tags(key)
        assert digest.endswith(".dir")
        assert digest in lock
    assert project.run_tags("git.dirty") == ["false"]
    assert project.run_tags("mlflow.classifier.env.arithmetic") == ["portable" if is_x86() else "native"]
    assert project.run_tags("mlflow.classifier.env.parts") == ["2"]
    assert project.run_tags("mlflow.classifier.env.processes")[0] in ("1", "2")
    keys = {key for (key,) in project.query("SELECT key FROM latest_metrics")}
    assert keys >= {"train/running_loss", "train/learning_rate", "validation/accuracy", "test/accuracy"}
    assert any(key.startswith("system/") for key in keys)
    (artifacts,) = (project.folder / "mlartifacts").glob("*/artifacts")
    logged = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    outs = ("reports/data", "reports/train", "reports/evaluate")
    reports = {f"{out.split('/')[1]}/{name}" for out in outs for name in OUTPUTS[out]}
    code = {"code/params.yaml", "code/dvc.lock", "code/environment.json"}
    assert logged == {"logs/train.txt", "logs/evaluate.txt", *reports, *code}
    assert "[20,    40] loss:" in (artifacts / "logs/train.txt").read_text()


def test_outputs_hold_no_run_id_time_or_path(project):
    ((run_id,),) = project.query("SELECT run_uuid FROM runs")
    for out in OUTPUTS:
        for path in (project.folder / out).rglob("*"):
            content = path.read_bytes()
            assert run_id.encode() not in content
            assert str(project.folder).encode() not in content


def test_nothing_changed_runs_nothing(project):
    assert project.repro() == []
    assert len(project.query("SELECT run_uuid FROM runs")) == 1


def test_a_comment_runs_nothing(project):
    project.edit_params("  epochs: 20", "  # patience\n  epochs: 20")
    assert project.repro() == []
    project.git("checkout", "-q", "params.yaml")


def test_dvc_shows_metrics_plots_and_params(project):
    shown = json.loads(project.run("dvc", "metrics", "show", "--json"))
    assert shown[""]["data"]["reports/evaluate/metrics.json"]["data"]["test/accuracy"] > 0.97
    page = project.run("dvc", "plots", "show", "--out", "page").strip().splitlines()[-1]
    text = Path(page.removeprefix("file://")).read_text()
    for name in (
        "curves.png",
        "confusion.png",
        "calibration.png",
        "misclassified.png",
        "robustness.png",
        "classes.png",
        "duplicates.png",
    ):
        assert name in text
    assert "https://" not in text  # it is drawn without a network
    shutil.rmtree(project.folder / "page")
    project.edit_params("learning_rate: 0.05", "learning_rate: 0.04")
    assert "learning_rate" in project.run("dvc", "params", "diff")
    project.git("checkout", "-q", "params.yaml")


def test_results_name_accuracy_interval_places_and_the_run_and_end_with_the_page(project):
    text = project.run(sys.executable, "-m", "classifier", "results")
    metrics, (run,) = project.metrics(), project.query("SELECT run_uuid FROM runs")
    assert f"{metrics['accuracy']:.2%} on digits" in text
    assert f"95% interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}, 359 images" in text
    for place in ("models/classifier/", "reports/evaluate/", run[0][:8]):
        assert place in text
    page = text.strip().splitlines()[-1].split()[-1]
    assert page == (project.folder / "reports/evaluate/report.html").as_uri()
    found = json.loads(project.run(sys.executable, "-m", "classifier", "results", "--json"))
    assert found.pop("run")["id"] == run[0]
    known = {"dataset": "digits", "seed": 0, "images": 359, "confidence": 0.95, "model": "models/classifier"}
    assert found == known | {"metrics": metrics}


@pytest.mark.slow
def test_a_second_clone_gives_the_same_bytes(reproduced, tmp_path):
    second = Project(tmp_path)
    second.repro()
    assert second.hashes() == reproduced.hashes()


@pytest.mark.slow
@pytest.mark.mnist
def test_the_tutorials_recipe_gives_the_tutorials_numbers(quick, mnist_folder):
    """A plain DataLoader loop printed 2.304 at step 100, 2.263 at step 1,200, and reached 36% of the test images."""
    quick.run(sys.executable, "-m", "classifier", "recipe", "tutorial-mnist")
    ran = quick.repro(env={"DATA_MIRROR": str(mnist_folder)})
    assert ran == ["download", "normalize", "pretrained", "train", "evaluate"]
    assert "[1,   100] loss: 2.304\n" in quick.output
    assert "[2,   600] loss: 2.263\n" in quick.output
    assert 0.35 < quick.metrics()["accuracy"] < 0.39
    assert "10000 images)" in quick.output


@pytest.mark.slow
@pytest.mark.mnist
def test_the_mnist_recipe_reaches_99_3_percent(quick, mnist_folder):
    quick.run(sys.executable, "-m", "classifier", "recipe", "mnist")
    quick.repro(env={"DATA_MIRROR": str(mnist_folder)})
    assert quick.metrics()["accuracy"] >= 0.993


def test_another_learning_rate_runs_train_and_evaluate_alone_and_metrics_diff_shows_what_it_changed(trained):
    trained.edit_params("learning_rate: 0.05", "learning_rate: 0.001")
    trained.edit_params("epochs: 20", "epochs: 1")
    assert trained.repro() == ["train", "evaluate"]
    assert len(trained.query("SELECT run_uuid FROM runs")) == 2
    changed = json.loads(trained.run("dvc", "metrics", "diff", "--json"))
    assert changed["reports/train/metrics.json"]["train/loss"]["diff"] != 0


@pytest.mark.slow
def test_experiments_from_workspace_temporary_folders_and_queue_are_runs_of_one_store(trained):
    trained.edit_params("epochs: 20", "epochs: 1")
    trained.commit("quick")
    trained.run("dvc", "exp", "run", "--name", "here", "-S", "train.learning_rate=0.01")
    trained.git("checkout", "-q", ".")
    trained.run("dvc", "exp", "run", "--name", "aside", "--temp", "-S", "train.learning_rate=0.02")
    trained.run("dvc", "exp", "run", "--name", "queued", "--queue", "-S", "train.learning_rate=0.03")
    trained.run("dvc", "queue", "start", "--jobs", "1")
    trained.run("dvc", "queue", "logs", "queued", "--follow")
    runs = trained.query(
        "SELECT r.name, p.value, r.status FROM runs r JOIN params p ON p.run_uuid = r.run_uuid "
        "WHERE p.key = 'train.learning_rate' AND p.value != '0.05' ORDER BY p.value"
    )
    assert [(name.split()[-1], rate, status) for name, rate, status in runs] == [
        ("here", "0.01", "FINISHED"),
        ("aside", "0.02", "FINISHED"),
        ("queued", "0.03", "FINISHED"),
    ]
    assert len(trained.run_tags("mlflow.classifier.dvc_exp_baseline")) == 3
    assert trained.query("SELECT count(*) FROM latest_metrics WHERE key = 'test/accuracy'") == [(4,)]
    points = trained.query("SELECT count(*) FROM metrics WHERE key = 'train/running_loss' GROUP BY run_uuid")
    assert sorted(points) == [(4,)] * 3 + [(80,)]
    for (uri,) in trained.query("SELECT artifact_uri FROM runs WHERE name IN ('here', 'aside', 'queued')"):
        artifacts = Path(uri.removeprefix("file://"))
        assert artifacts.is_relative_to(trained.folder / "mlartifacts")
        assert "learning_rate" in (artifacts / "code/uncommitted.diff").read_text()


def test_every_problem_in_params_is_named_at_once_before_any_work(quick):
    quick.edit_params("epochs: 1", "epochs: -1\n  epoch: 3")
    quick.edit_params("confidence: 0.95", "confidence: high")
    quick.edit_params("dataset: digits", "dataset: imagenet")
    quick.repro(check=False)
    assert quick.returncode != 0
    for key in ("train.epochs: -1", "train.epoch: 3", "evaluate.confidence: 'high'", "download.dataset: 'imagenet'"):
        assert key in quick.output
    assert "Traceback" not in quick.output
    assert not (quick.folder / "data").exists()


def test_a_training_that_fails_leaves_a_failed_run_with_its_error(quick):
    quick.edit_params("learning_rate: 0.05", "learning_rate: 100.0")
    quick.repro(check=False)
    assert quick.returncode != 0
    assert "not finite at step" in quick.output
    assert "Traceback" not in quick.output
    assert quick.query("SELECT status FROM runs") == [("FAILED",)]
    assert "not finite at step" in quick.run_tags("error")[0]
    assert not (quick.folder / "models/classifier/weights.safetensors").exists()
    (log,) = (quick.folder / "mlartifacts").glob("*/artifacts/logs/train.txt")
    assert "not finite at step" in log.read_text()


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("normalize", "data/raw data/normalized reports/data", "run dvc repro"),
        ("train", "data/normalized data/pretrained models/classifier reports/train", "run dvc repro normalize"),
        ("evaluate", "data/normalized models/classifier reports/train reports/evaluate", "run dvc repro normalize"),
    ],
)
def test_a_missing_input_names_the_stage_to_run(quick, stage, arguments, message):
    output = quick.run(sys.executable, "-m", f"stages.{stage}", "params.yaml", *arguments.split(), check=False)
    assert quick.returncode == 1
    assert message in output
    assert "Traceback" not in output


def test_train_does_not_read_the_test_split(trained):
    before = trained.hashes()
    (trained.folder / "data/normalized/test.safetensors").unlink()
    shutil.rmtree(trained.folder / "models")
    shutil.rmtree(trained.folder / "reports/train")
    trained.run(
        *(sys.executable, "-m", "stages.train", "params.yaml"),
        *("data/normalized", "data/pretrained", "models/classifier", "reports/train"),
    )
    assert trained.hashes() == {name: value for name, value in before.items() if "test.safetensors" not in name}
