"""What commit 31cce96 wrote stays readable: its store, outputs, journals and checkpoint (tests/data/31cce96)."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from classifier.commands.application import call
from classifier.data.dataset import SPLITS, read_meta, read_split
from classifier.device import environment, pick_device
from classifier.networks.model_dir import read_model_meta
from classifier.params import BEFORE, load_params
from classifier.project.files import sha256_of
from classifier.recording.store import sqlite_uri
from classifier.runs.reading import all_runs
from classifier.sources.raw import read_raw
from classifier.training.checkpoint import checkpointed, fingerprint_of
from classifier.training.history import read_history
from classifier.training.parts import computation_of
from classifier.training.report import verify_training
from stages import download, normalize
from tests.projects import Project
from tests.recorded import own_store
from tests.samples import ROOT, file_params

COMMIT = "31cce9638802fde698fd477443f59eac3c9ae7ac"
LOCKED = "952d9eaacad3b509d02840df48f5ecc9e338c272"  # the commit of its dvc.lock, with the same code
ARCHIVE = ROOT / "tests/data/31cce96/golden.tar.xz"
DEFAULT, OTHER, SEEDS, SWEEP = "3fbd2d15", "5b46cf52", "6d28c7e5", "8bdb4b31"  # runs
ACCURACY = 353 / 359  # of DEFAULT on the test split
FOUND = subprocess.run(["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True)
HAS_HISTORY = FOUND.returncode == 0
needs_history = pytest.mark.skipif(not HAS_HISTORY, reason=f"commit {COMMIT[:7]} is not in this clone, a shallow one")


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    """A project of that commit after an update to today's code; its outputs, caches and store are those of before."""
    project = Project(tmp_path_factory.mktemp("updated"))
    if HAS_HISTORY:
        project.git("fetch", "-q", str(ROOT), "HEAD")
        project.git("reset", "-q", "--soft", "FETCH_HEAD")
    with tarfile.open(ARCHIVE) as archive:
        members = [member for member in archive if member.name != "params.yaml"]
        archive.extractall(project.folder, members, filter="data")
    project.git("add", "--all")
    project.git("commit", "-q", "--allow-empty", "-m", "update")
    return project


@pytest.fixture
def golden(updated, tmp_path):
    """A copy of it, the current folder."""
    shutil.copytree(updated.folder, tmp_path, dirs_exist_ok=True)
    with own_store(tmp_path):
        yield tmp_path


@pytest.fixture
def classifier(golden, capsys):
    """`classifier(*arguments)`: exit status and what the command printed."""

    def run(*arguments):
        status = 0
        try:
            call(list(arguments))
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr().out

    return run


def answer(printed):
    return json.loads(printed[1])


def from_archive(name):
    with tarfile.open(ARCHIVE) as archive:
        return archive.extractfile(name).read()


def test_the_leaderboard_ranks_runs_of_before(classifier):
    board = answer(classifier("leaderboard", "--json"))
    entries = [(entry["n"], entry["differing"]["train.learning_rate"]) for entry in board["entries"]]
    assert entries == [(1, "0.05"), (1, "0.02"), (3, "0.05"), (1, "0.01")]  # a seed of the sweep is one of SEEDS too
    assert board["entries"][0]["mean"] == ACCURACY
    assert board["entries"][0]["parameters"] == 61706
    assert "train.seeds" not in board["differing"]
    assert [entry["verdict"] for entry in board["entries"]][::3] == ["best", "worse"]
    assert len(answer(classifier("leaderboard", "--json", "--sweep", SWEEP))["entries"]) == 2


def test_the_params_of_runs_of_before_have_todays_names(golden):
    runs = all_runs()
    assert {name for name in runs if name.startswith("params.")} == {f"params.{key}" for key in file_params().flat()}
    assert runs.loc[runs.index.str.startswith(SEEDS), "params.train.seeds"].item() == "3"
    assert sorted(runs.loc[runs["replica_of"].notna(), "params.train.seeds"]) == ["1"] * 3


def test_runs_of_before_are_compared(classifier):
    found = answer(classifier("compare", DEFAULT, OTHER, "--json"))
    assert found["params"] == {"train.learning_rate": ["0.05", "0.02"], "train.epochs": ["20", "4"]}
    assert (found["data"], found["problems"]) == ({}, [])
    assert {Path(path).name for path in found["written"]} >= {"curves.png", "disagreements.png", "disagreements.csv"}
    assert sum(row["images"] for row in found["per_class"]) == 359


def test_models_of_before_are_promoted_and_rolled_back(classifier, golden):
    known = answer(classifier("promote", OTHER, "--json"))  # it was the champion then
    assert (known["outcome"], known["champion"], known["previous"]) == ("unchanged", "2", "1")
    assert answer(classifier("promote", "--rollback", "--json"))["champion"] == "1"
    status, printed = classifier("promote", OTHER, "--json")
    refused = json.loads(printed)
    assert (status, refused["outcome"], refused["champion"]) == (1, "refused", "1")
    (reason,) = refused["reasons"]
    assert reason.startswith("the lower bound of its test accuracy is 0.94")
    path = golden / "params.yaml"
    path.write_text(path.read_text().replace("min_accuracy_low: 0.95", "min_accuracy_low: 0.9"))
    promoted = answer(classifier("promote", OTHER, "--json"))
    assert (promoted["outcome"], promoted["champion"], promoted["previous"]) == ("promoted", "2", "1")


def test_outputs_of_before_are_those_of_their_run(classifier):
    assert answer(classifier("record", "--json"))["new"] is False


def test_outputs_of_before_are_recorded_with_todays_names(classifier, golden):
    (golden / "mlflow.db").unlink()
    shutil.rmtree(golden / "mlartifacts")
    shutil.rmtree(golden / ".pipeline")
    recorded = answer(classifier("record", "--json"))
    assert recorded["new"] is True
    if HAS_HISTORY:
        assert recorded["source"] == f"commit {LOCKED}"
    run = mlflow.get_run(recorded["run"])
    assert run.data.params == {name: str(value) for name, value in (file_params().flat() | BEFORE).items()}
    assert run.data.metrics["test/accuracy"] == ACCURACY
    assert answer(classifier("record", "--json")) == recorded | {"new": False}


def test_journals_of_before_are_delivered(classifier):
    synced = answer(classifier("sync", "--json"))
    assert (len(synced["recorded"]), synced["not_recorded"]) == (3, [])
    evaluated, interrupted = (
        mlflow.search_runs(search_all_experiments=True, filter_string=f"params.{condition}", output_format="list")
        for condition in ("`train.seed` = '7'", "`train.epochs` = '1000'")
    )
    (run,) = evaluated
    assert (run.info.status, run.data.tags["mlflow.classifier.evaluated"]) == ("FINISHED", "true")
    assert run.data.metrics.keys() >= {"train/loss", "validation/accuracy", "test/accuracy"}
    (run,) = interrupted
    assert run.info.status == "KILLED"
    assert mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/running_loss")[-1].step == 30


PREDICT = """
import json, sys
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model("models:/classifier/1")
print(json.dumps(model.predict(np.load("images.npy"))["predicted"].tolist()))
print(sys.modules["classifier"].__file__)
"""


def test_a_stored_model_of_before_is_loaded_by_todays_code(golden):
    images, known = known_predictions(golden)
    all_runs()  # finds the store
    predicted = mlflow.pyfunc.load_model("models:/classifier/1").predict(images)["predicted"].tolist()
    assert predicted == known


def test_a_stored_model_of_before_is_loaded_with_the_code_that_it_carries(updated, golden, tmp_path_factory):
    images, known = known_predictions(golden)
    all_runs()  # after the move the store's addresses are those of here
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    np.save(elsewhere / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", PREDICT],
        cwd=elsewhere,
        env=updated.variables | {"MLFLOW_TRACKING_URI": sqlite_uri(golden / "mlflow.db")},
        check=True,
        capture_output=True,
        text=True,
    )
    predicted, code = done.stdout.splitlines()[-2:]
    assert json.loads(predicted) == known
    assert Path(code).is_relative_to(golden / "mlartifacts/models")


def known_predictions(golden):
    images = load_file(golden / "data/normalized/test.safetensors")["images"][:8]
    table = pd.read_parquet(golden / "reports/evaluate/predictions.parquet").set_index("index").sort_index()
    return images, [str(label) for label in table["predicted"][:8]]


def test_outputs_of_before_are_read(golden):
    manifest, files = read_raw(golden / "data/raw")
    assert (manifest.dataset, list(files)) == ("digits", ["digits.csv.gz"])
    meta = read_meta(golden / "data/normalized")
    assert [len(read_split(golden / "data/normalized", name, meta)) for name in SPLITS] == [1295, 143, 359]
    model = golden / "models/classifier"
    assert (read_model_meta(model).architecture, read_model_meta(model).seed) == ("lenet5", 0)
    verify_training(golden / "reports/train")
    assert len(read_history(golden / "reports/train/history.csv")) == 100
    (of_seeds,) = (golden / "mlartifacts").glob("*/artifacts/train/replicas")
    verify_training(of_seeds.parent)
    assert len(read_history(of_seeds / "seed-2.csv")) == 10


def test_the_digits_are_still_the_same_bytes(tmp_path):
    """meta.json is another file today; the images, labels, splits and statistics in it are not."""
    raw, data = str(tmp_path / "raw"), tmp_path / "normalized"
    download.main([str(ROOT / "params.yaml"), raw])
    normalize.main([str(ROOT / "params.yaml"), raw, str(data), str(tmp_path / "reports")])
    before, meta = json.loads(from_archive("data/normalized/meta.json")), read_meta(data)
    assert {name: sha256_of(data / f"{name}.safetensors") for name in SPLITS} == before["sha256"] == meta.sha256
    assert (meta.mean, meta.std, meta.counts) == (before["mean"], before["std"], before["counts"])


def test_a_checkpoint_of_other_code_is_not_resumed(golden):
    """On the machine that wrote it everything but the code is the same."""
    (before,) = (golden / ".pipeline/checkpoints").iterdir()
    train = {"epochs": 1000, "checkpoint_every": 30, "momentum": 0.0, "nesterov": False}
    params = file_params().override({f"train.{name}": value for name, value in train.items()}).train
    device = pick_device("cpu", "train.device")
    stage = ROOT / "stages/train.py"
    decisive = computation_of(params, device).decisive(environment(device))
    fingerprint = fingerprint_of(params, golden / "data/normalized", decisive, stage)
    with checkpointed(fingerprint, 30) as work:
        assert work.folder != before
        assert work.of_seed(0).load(1000, 41, 10) is None
    assert len(list(before.rglob("*.safetensors"))) == 1


def test_a_params_file_of_before_says_what_was_renamed(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(from_archive("params.yaml"))
    with pytest.raises(ValueError, match=r"params\.yaml has \d+ problems:") as caught:
        load_params(path)
    lines = str(caught.value).splitlines()[1:]
    missing = {line.split(":")[0].strip(): line for line in lines if " is missing" in line}
    assert missing.keys() == {f"{key} is missing" for key in BEFORE}
    assert missing["train.arithmetic is missing"].endswith("; 'native' does what versions without it did")
    assert {line.strip() for line in lines} - {line.strip() for line in missing.values()} == {
        "train.replicas: 1: renamed to train.seeds",
        "evaluate.mistakes: 25: renamed to evaluate.misclassified",
        "train.shift: 1: renamed to train.augment.shift",
        "train.rotation: 0.0: renamed to train.augment.rotation",
        "train.scale: 0.0: renamed to train.augment.scale",
    }


@needs_history
@pytest.mark.slow
def test_a_run_of_before_is_reproduced(classifier):
    status, printed = classifier("reproduce", DEFAULT, "--json")
    verdict = json.loads(printed)
    assert not verdict["missing"]
    assert not {each["kind"] for each in verdict["differences"]} & {"data", "params"}, "wherever the run was made"
    if verdict["differences"] and verdict["environment"]:
        pytest.skip(f"the run was made elsewhere: {verdict['environment']}")
    assert (status, verdict["differences"], verdict["missing"]) == (0, [], [])
    assert verdict["commit"] == COMMIT
    assert verdict["compared"].keys() == {"data", "params", "weights", "metrics", "reports"}
