"""A run made again: what is compared, on small runs."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import mlflow
import pytest
from sqlalchemy import make_url

from classifier.commands.reproduce import _show
from classifier.project.files import sha256_of
from classifier.recording.store import sqlite_uri
from classifier.runs.reproduction import (
    DATA,
    Finding,
    Reproduction,
    ReproductionReport,
    StoredRun,
    compare,
    compare_data,
    with_params,
    with_sections,
)
from tests.recorded import Workspace, get_run, recorded


def record_of(run_id):
    return StoredRun(get_run(run_id), mlflow.MlflowClient())


def fail(outputs, message):
    """A training that fails; returns its run's record."""
    with suppress(ValueError), recorded("train", outputs.params) as record:
        record.begin(message, {"threads": "2"})
        record.log_data(outputs.data, outputs.data_meta)
        raise ValueError(message)
    return record_of(record.id)


def differences(findings):
    return {(each.kind, each.name): (each.recorded, each.reproduced) for each in findings if not each.same}


def test_equal_runs_are_identical_and_everything_is_compared(workspace):
    runs = []
    for _ in range(2):
        outputs = Workspace()
        runs.append(record_of(outputs.train()))
        outputs.evaluate()
    first, second = (record_of(run.id) for run in runs)
    assert first.id != second.id
    findings = [*compare_data(first, DATA), *compare(first, second, None)]
    assert not differences(findings)
    assert {(each.kind, each.name) for each in findings} == {
        *(("params", name) for name in outputs.params.flat()),
        *(("data", name) for name in (str(DATA), "test split")),
        *(("weights", name) for name in ("weights.safetensors", "model directory")),
        *(("metrics", name) for name in first.metrics),
        *(
            ("reports", f"train/{name}")
            for name in ("history.csv", "layers.csv", "manifest.json", "metrics.json", "summary.json")
        ),
        ("reports", "evaluate/metrics.json"),
        *(("environment", name) for name in first.environment.keys() | second.environment.keys()),
    }
    assert first.environment.keys() >= {"threads", "torch", "numpy"}
    assert first.metrics.keys() >= {"train/running_loss", "validation/accuracy", "test/accuracy"}
    assert ReproductionReport(first.id, "", findings, [], [], None).compared["reports"] == 6


def test_params_of_earlier_versions_are_compared_under_todays_names(workspace):
    outputs = Workspace()
    first, second = record_of(outputs.train()), record_of(outputs.train())
    second.params["train.replicas"] = second.params.pop("train.seeds")
    assert not differences(compare(first, second, None))
    assert not differences(compare(second, first, None))


def test_every_difference_is_named(workspace):
    outputs = Workspace()
    first = outputs.train()
    outputs.evaluate()
    outputs = Workspace(seed=1)
    train = outputs.params.train.model_copy(update={"seed": 1})
    outputs.params = outputs.params.model_copy(update={"train": train})
    (outputs.reports / "extra.csv").write_text("1\n")
    second = outputs.train()
    outputs.evaluate()
    client = mlflow.MlflowClient()
    client.set_tag(second, "mlflow.classifier.env.threads", "1")
    client.log_metric(second, "test/accuracy", 0.5, step=1)
    (DATA / "meta.json").unlink()
    record = record_of(first)
    found = differences([*compare_data(record, DATA), *compare(record, record_of(second), None)])
    assert found.keys() == {
        ("data", str(DATA)),
        ("environment", "threads"),
        ("params", "train.seed"),
        *(("weights", name) for name in ("weights.safetensors", "model directory")),
        ("metrics", "test/accuracy"),
        ("reports", "evaluate/extra.csv"),
    }
    assert found["environment", "threads"] == ("2", "1")
    assert found["metrics", "test/accuracy"] == ("0.9", "0.5")
    assert found["reports", "evaluate/extra.csv"] == (None, sha256_of(outputs.reports / "extra.csv"))


def test_a_failure_is_repeated_by_the_same_error_alone(workspace):
    outputs = Workspace()
    first, same, other = (fail(outputs, message) for message in ("not finite", "not finite", "no space"))
    assert first.error == "ValueError: not finite"
    assert not differences(compare(first, same, same.error))
    assert differences(compare(first, other, other.error)) == {("error", "error"): (first.error, other.error)}
    finished = record_of(outputs.train())
    assert differences(compare(first, finished, None)) == {("error", "error"): (first.error, None)}
    failed = [each for each in compare(finished, first, first.error) if each.kind != "environment"]
    assert failed == [Finding("error", "error", None, first.error)]  # not that everything else lacks too
    assert list(compare(finished, None, "no word")) == [Finding("error", "error", None, "no word")]


@pytest.mark.parametrize(
    ("tags", "status", "message"),
    [
        (
            {"mlflow.classifier.seed": "3", "mlflow.parentRunId": "0123"},
            "FINISHED",
            "is seed 3 of run 0123: classifier reproduce",
        ),
        ({"git.commit": "c", "dvc.data": "d"}, "RUNNING", "is RUNNING: only runs that FINISHED"),
        ({"git.commit": "c", "dvc.data": "d"}, "FAILED", "is FAILED: .* FAILED with an error"),
        ({"dvc.data": "d", "git.problem": "not a repository"}, "FINISHED", r"without its commit \(not a repos"),
        ({"git.commit": "c"}, "FINISHED", "does not record its data"),
        ({"git.commit": "c", "dvc.data": "d", "git.dirty": "true"}, "FINISHED", "uncommitted changes of run .* not in"),
    ],
)
def test_a_run_that_cannot_be_repeated_says_why(workspace, tags, status, message):
    client = mlflow.MlflowClient(sqlite_uri(workspace / "mlflow.db"))
    run = client.create_run(client.create_experiment("classifier"), tags=tags)
    client.set_terminated(run.info.run_id, status) if status != "RUNNING" else None
    record = StoredRun(client.get_run(run.info.run_id), client)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        record.check()


def test_what_a_record_lacks_is_a_warning(workspace):
    outputs = Workspace()
    record = record_of(outputs.train())
    del record.tags["git.problem"]
    assert record.warnings() == []
    del record.tags["mlflow.classifier.env.threads"]
    record.tags["git.problem"] = "x (may hold secrets)"
    assert [line.split(":")[0] for line in record.warnings()] == [
        "the run's code was not recorded completely",
        "the number of threads, on which results depend, was not recorded",
    ]
    record.tags = {"git.problem": "x"}  # a training that evaluate recorded, of which nothing more is known
    record.code.pop("environment.json", None)
    assert record.params["train.arithmetic"] == "portable"
    assert len(record.warnings()) == 1
    record.params["train.arithmetic"] = "native"
    assert len(record.warnings()) == 2


def test_what_a_record_lacks_cannot_be_called_identical(workspace, capsys):
    outputs = Workspace()
    record = record_of(outputs.train())
    assert record.missing() == []  # it was not evaluated yet
    outputs.evaluate()
    record = record_of(record.id)
    assert record.missing() == []
    record.folders -= {"train", "evaluate"}
    weights = record.tags.pop("mlflow.classifier.weights_sha256")
    assert record.missing() == [
        "its weights: the run has no tag mlflow.classifier.weights_sha256",
        "its reports: train/ is not among its artifacts",
        "its reports: evaluate/ is not among its artifacts",
    ]
    verdict = ReproductionReport(record.id, "c", [Finding("params", "p", "1", "1")], [], record.missing(), None)
    assert not verdict.identical
    _show(verdict)
    assert capsys.readouterr().out.splitlines() == [
        f"run {record.id} cannot be compared completely; identical: 1 params",
        *(f"cannot be compared: {line}" for line in record.missing()),
    ]
    record.status = "FAILED"  # it need not have come so far
    assert (record.missing(), weights) == ([], outputs.meta.weights_sha256)


def test_a_sweep_is_no_run_to_repeat(workspace):
    client = mlflow.MlflowClient(sqlite_uri(workspace / "mlflow.db"))
    mlflow.set_tracking_uri(sqlite_uri(workspace / "mlflow.db"))
    experiment = client.create_experiment("classifier")
    parent = client.create_run(experiment).info.run_id
    client.create_run(experiment, tags={"mlflow.parentRunId": parent})
    client.set_terminated(parent, "FINISHED")
    with pytest.raises(ValueError, match=rf"{parent} is a sweep, .*: classifier leaderboard shows which to reproduce$"):
        record_of(parent).check()


def test_params_that_mlflow_has_as_text_get_their_types_back():
    file = b"download: {dataset: digits, mirror: x}\nnormalize: {mean: null, other: 1} # comment\n"
    texts = {"download.dataset": "mnist", "download.mirror": "None", "normalize.mean": "[0.5]"}
    assert json.loads(with_params(file, texts)) == {
        "download": {"dataset": "mnist", "mirror": None},
        "normalize": {"mean": [0.5], "other": 1},
    }


def test_sections_that_a_run_did_not_record_are_those_of_its_commit():
    file, recorded = b"train: {epochs: 20, seed: 0} # all\nsweep: {seed: 0}\n", b'{"train": {"epochs": 4, "seeds": 3}}'
    assert json.loads(with_sections(file, recorded)) == {"train": {"epochs": 4, "seeds": 3}, "sweep": {"seed": 0}}


def test_the_store_of_a_reproduction_lies_in_its_worktree_whatever_the_folder_is_called(tmp_path):
    project = tmp_path / "lenet%20main?"
    project.mkdir()
    (project / "params.yaml").write_text("{}")
    uri = Reproduction(project, tmp_path, "c", None).environment["MLFLOW_TRACKING_URI"]
    assert make_url(uri).database == str(project / "mlflow.db")


def test_data_that_nobody_has_says_what_to_pull(tmp_path):
    script = "import sys; sys.exit('normalize: the mirrors are gone')"
    (tmp_path / "dvc.yaml").write_text(
        json.dumps({"stages": {"normalize": {"cmd": f'{sys.executable} -c "{script}"', "outs": [str(DATA)]}}})
    )
    (tmp_path / "params.yaml").write_text("{}")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    wanted = "0123456789abcdef0123456789abcdef.dir"
    with pytest.raises(
        FileNotFoundError,
        match=rf"{wanted} could not .*dvc pull: .*; dvc repro normalize: normalize: the mirrors are gone\)",
    ):
        Reproduction(tmp_path, tmp_path, "c", None).bring_data(wanted)


def test_a_failure_of_dvc_is_not_reported_as_missing_data(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    (tmp_path / "params.yaml").write_text("{}")
    (tmp_path / ".dvc/config").write_text("[core]\n    nonsense = 1\n")
    with pytest.raises(FileNotFoundError, match=r"dvc pull: configuration error .*nonsense") as error:
        Reproduction(tmp_path, tmp_path, "c", None).bring_data(f"{0:032}.dir")
    assert "remote" not in str(error.value).partition("; if a remote")[0]


def test_the_parent_of_a_thousand_seeds_is_found(workspace):
    """MLflow returns 1,000 runs at once, the newest first."""
    address = sqlite_uri(workspace / "mlflow.db")
    client = mlflow.MlflowClient(address)
    experiment = client.create_experiment("classifier")
    parent = client.create_run(experiment, start_time=1, tags={"git.commit": "c0ffee"}).info.run_id
    child = client.create_run(experiment, start_time=2, tags={"mlflow.classifier.seed": "0"}).info.run_id
    with closing(sqlite3.connect(workspace / "mlflow.db")) as store, store:
        columns = [name for _, name, *_ in store.execute("PRAGMA table_info(runs)") if name != "run_uuid"]
        copied = f"INSERT INTO runs (run_uuid, {', '.join(columns)}) SELECT ?, {', '.join(columns)} FROM runs"
        for seed in range(1, 1001):
            store.execute(f"{copied} WHERE run_uuid = ?", (f"{seed:032}", child))
            store.execute("INSERT INTO tags VALUES ('replica.seed', ?, ?)", (str(seed), f"{seed:032}"))
    (workspace / "params.yaml").write_text("{}")
    record = Reproduction(workspace, workspace, "c0ffee", None)._record()
    assert record.id == parent


def test_the_verdict_is_a_line_or_a_table(capsys):
    run_id, digest = "0123456789abcdef" * 2, "a" * 64
    same = [
        Finding("weights", "w", digest, digest),
        Finding("metrics", "m", "1", "1"),
        Finding("metrics", "n", "1", "1"),
    ]
    versions = Finding("environment", "torch", "2.0[x]", None)
    _show(ReproductionReport(run_id, "c", [*same, versions], ["take care"], [], None))
    shown = capsys.readouterr().out
    assert shown.startswith(f"warning: take care\nrun {run_id} is reproduced, byte-identical: 1 weights, 2 metrics\n")
    assert "the environment differs:" in shown
    assert "2.0[x]" in shown
    other = Finding("weights", "model directory", f"{'a' * 32}.dir", f"{'b' * 32}.dir")
    _show(ReproductionReport(run_id, "c", [*same, other], [], [], Path("/there")))
    shown = capsys.readouterr().out
    assert f"run {run_id} is not reproduced: 1 difference\n" in shown
    assert [line.split() for line in shown.splitlines() if "model directory" in line] == [
        ["weights", "model", "directory", "a" * 12, "b" * 12]
    ]
    assert "environment" not in shown


def environment_of(*changes, arithmetic="native"):
    values = {"arithmetic": (arithmetic, arithmetic)} | dict.fromkeys(changes, ("this", "that"))
    return [Finding("environment", name, *both) for name, both in values.items()]


def test_a_difference_in_arithmetic_is_named_before_the_others(capsys):
    other = Finding("weights", "w", "a", "b")
    for arithmetic, named in (
        ("native", "instructions was this, is that; cpu was this, is that"),
        ("portable", "instructions was this, is that"),
    ):
        findings = [other, *environment_of("instructions", "cpu", "torch", arithmetic=arithmetic)]
        report = ReproductionReport("0" * 32, "c", findings, [], [], None)
        _show(report)
        assert capsys.readouterr().out.splitlines()[:2] == [
            f"run {'0' * 32} is not reproduced: 1 difference",
            f"the computation differs, which may be the cause: {named}",
        ]
        assert [each["name"] for each in report.summary()["computation"]] == [
            part.split()[0] for part in named.split("; ")
        ]
    same = ReproductionReport("0" * 32, "c", environment_of("cpu", arithmetic="portable"), [], [], None)
    assert (same.identical, same.computation) == (True, [])
