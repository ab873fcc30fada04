"""classifier promote, the whole way: what it prints, what it changes, and two processes at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import load_file

from classifier.commands.application import call
from classifier.recording.tags import WEIGHTS_TAG
from classifier.runs.registry import Registry
from classifier.serving.runtime import Model
from classifier.serving.stored import logged_model
from classifier.tracking.connection import open_store
from tests.candidates import begin_project, git, record_candidates, unregistered
from tests.recorded import get_run, own_store
from tests.rivals import PROCESSES, race_commands
from tests.samples import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    with own_store(root):
        begin_project()
        return root, record_candidates({"bad": range(12), "one": [0], "two": [1], "three": []})


@pytest.fixture
def runs(project):
    root, runs = project
    with unregistered(root):
        yield runs


@pytest.fixture
def cli(capsys):
    """`cli(*arguments)`: exit status and what was printed."""

    def cli(*arguments):
        status = 0
        try:
            call(["promote", *arguments])
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr().out

    return cli


def registered():
    """All that the registry holds."""
    client = mlflow.MlflowClient()
    versions = client.search_model_versions()
    return [dict(model) for model in client.search_registered_models()], [dict(version) for version in versions]


def test_promote_refuse_roll_back(runs, cli):
    status, printed = cli(runs["one"])
    assert status == 0
    assert "promoted: version 1 is classifier@champion\n" in printed
    status, printed = cli(runs["two"][:8])
    assert status == 0
    assert "promoted: version 2 is classifier@champion instead of version 1\n" in printed
    assert "to release it, commit the dvc.lock that holds this model" in printed

    before = registered()
    status, printed = cli(runs["bad"])
    assert status == 1
    lines = printed.splitlines()
    start = lines.index(f"run {runs['bad']} was not promoted, nothing was changed:")
    assert [line.partition(" is ")[0].strip() for line in lines[start + 1 :]] == [
        "the lower bound of its test accuracy",
        "its expected calibration error",
        "it",  # is worse than the champion
    ]
    assert cli(runs["three"], "--dry-run")[1].endswith(f"{runs['three']} passes the checks; nothing was changed\n")
    status, printed = cli(runs["two"])
    assert status == 0
    assert printed.startswith("nothing to do: version 2 with this run's weights is already classifier@champion\n")
    assert registered() == before

    assert cli("--rollback") == (
        0,
        "rolled back: version 1 is classifier@champion again instead of version 2\n",
    )
    with pytest.raises(ValueError, match="was itself rolled back"):
        cli("--rollback")
    registry = Registry("classifier")
    assert (registry.champion(), registry.replaced()) == ("1", "2")


def test_the_version_has_the_onnx_file_of_its_run(runs, cli, tmp_path):
    cli(runs["one"])
    path = mlflow.artifacts.download_artifacts("models:/classifier@champion/model.onnx", dst_path=str(tmp_path))
    card = Model.read(Path(path)).card
    assert (card.run_id, card.weights_sha256) == (runs["one"], get_run(runs["one"]).data.tags[WEIGHTS_TAG])


@pytest.mark.parametrize("reference", ["models:/classifier@champion", "models:/classifier/1"])
def test_the_version_is_found_as_a_model_to_use(runs, cli, reference):
    cli(runs["one"])
    assert logged_model(reference, open_store()).source_run_id == runs["one"]


def test_json(runs, cli):
    status, printed = cli(runs["one"], "--json")
    answer = json.loads(printed)
    checks = answer.pop("checks")
    assert status == 0
    assert answer == {
        "run_id": runs["one"],
        "reasons": [],
        "outcome": "promoted",
        "version": "1",
        "onnx": "model.onnx",
        "release": [],
        "release_problem": "commit the dvc.lock that holds this model, then run this command again",
        "model": "classifier",
        "champion": "1",
        "previous": None,
    }
    assert [(check["check"], check["passed"]) for check in checks] == [
        ("accuracy_low", True),
        ("calibration_error", True),
        ("latency_ms", True),
    ]
    status, printed = cli(runs["bad"], "--json")
    refused = json.loads(printed)
    assert (status, refused["outcome"], refused["champion"], len(refused["reasons"])) == (1, "refused", "1", 3)
    assert json.loads(cli(runs["one"], "--json")[1])["outcome"] == "unchanged"
    assert json.loads(cli(runs["two"], "--json", "--dry-run")[1])["outcome"] == "passed"


@pytest.mark.parametrize(
    ("pipeline", "why"), [(None, "No such file"), ("a: [", "not YAML"), ("a: 1", "name the model")]
)
def test_the_champion_is_told_also_when_it_cannot_be_released(runs, cli, pipeline, why):
    before, lock = Path("dvc.yaml").read_text(), Path("dvc.lock").read_text()
    locked = get_run(runs["one"]).data.tags["dvc.model"]
    try:
        Path("dvc.lock").write_text(f"stages: {{train: {{outs: [{{path: models/classifier, md5: {locked}}}]}}}}\n")
        git("add", "dvc.lock")
        git("commit", "-qm", "trained")
        Path("dvc.yaml").unlink() if pipeline is None else Path("dvc.yaml").write_text(pipeline)
        status, printed = cli(runs["one"])
    finally:
        git("reset", "-q", "--soft", "HEAD^")
        Path("dvc.yaml").write_text(before)
        Path("dvc.lock").write_text(lock)
    assert status == 0
    assert "promoted: version 1 is classifier@champion\n" in printed
    assert why in printed


@pytest.mark.parametrize(
    "arguments", [[], ["--rollback", "0123456789"], ["--rollback", "--dry-run"], ["--rollback", "--limits-alone"]]
)
def test_a_wrong_command_line(arguments):
    with pytest.raises(ValueError, match="expected a run, or --rollback without one"):
        call(["promote", *arguments])


def test_the_champion_is_loaded_by_its_alias_and_predicts(runs, cli):
    cli(runs["three"])
    images = load_file("data/normalized/test.safetensors")["images"][:5]
    model = mlflow.pyfunc.load_model("models:/classifier@champion")
    table = model.predict(images)
    own = mlflow.pyfunc.load_model(f"runs:/{runs['three']}/classifier").predict(images)
    assert table.columns.tolist() == ["predicted", *map(str, range(10))]
    assert np.array_equal(table.to_numpy(), own.to_numpy())
    assert set(table["predicted"]) <= set(map(str, range(10)))
    assert table.drop(columns="predicted").sum(axis=1).to_numpy() == pytest.approx(np.ones(5))
    assert model.metadata.run_id == runs["three"]


def test_as_a_process(runs):
    def run(*arguments):
        command = [sys.executable, "-m", "classifier", "promote", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    promoted = run(runs["one"])
    assert promoted.returncode == 0, promoted.stderr
    assert promoted.stderr == "timing the model on 220 images, one by one on one thread\n"
    assert promoted.stdout.endswith("run this command again\n")
    unknown = run("0123456789")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("classifier: no run is called '0123456789'; the newest are ")
    assert unknown.stderr.count("\n") == 1


def test_of_two_commands_at_once_one_wins_and_the_other_says_so(runs, cli):
    """Both have passed the checks before either moves the alias; three rounds, from the same champion each time."""
    rounds = 3
    cli(runs["three"])
    start, gate, answers = PROCESSES.Barrier(3), PROCESSES.Barrier(2), PROCESSES.Queue()
    common = (os.environ["DVC_ROOT"], rounds, start, gate, answers)
    rivals = [
        PROCESSES.Process(target=race_commands, args=(*common, runs[name]), daemon=True) for name in ("one", "two")
    ]
    for rival in rivals:
        rival.start()
    registry = Registry("classifier")
    for _ in range(rounds):
        registry.client.set_registered_model_alias("classifier", "champion", "1")
        start.wait(60)
        outcomes = dict(answers.get(timeout=60) for _ in range(2))
        (won,) = (run_id for run_id, outcome in outcomes.items() if outcome == "promoted")
        champion = registry.champion()
        assert registry.replaced() == "1"
        assert registry.version(champion).run_id == won
        del outcomes[won]
        assert list(outcomes.values()) == [
            f"version {champion} became classifier@champion in the meantime: nothing was changed, run it again"
        ]
