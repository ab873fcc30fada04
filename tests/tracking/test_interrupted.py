"""Stages and recorders that fail, are killed or resumed: a run says how it ended, and has no point twice."""

import os
import subprocess
import sys

import mlflow
import pytest

from classifier.recording.journal import waiting_journals
from classifier.tracking import delivery as tracking
from tests.recorded import (
    ROWS,
    SeedsWorkspace,
    Workspace,
    all_runs,
    get_run,
    history,
    recorded,
    written,
)
from tests.samples import ROOT
from tests.tracking.test_delivery import check_seeds

pytestmark = pytest.mark.usefixtures("workspace")


def test_seeds_end_as_their_parent_does():
    outputs = SeedsWorkspace()

    def fail():
        with recorded("train", outputs.params) as record:
            record.begin("key", {})
            record.log_row(4, ROWS[0])
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert {run.info.status for run in all_runs()} == {"FAILED"}


def test_an_evaluation_that_was_killed_is_completed_without_doubled_points():
    outputs = Workspace()
    run_id = outputs.train()
    with pytest.raises(ZeroDivisionError):
        outputs.evaluate(fail=True)
    assert get_run(run_id).info.status == "FAILED"
    assert "ZeroDivisionError" in get_run(run_id).data.tags["error"]
    assert outputs.evaluate() == run_id
    assert "error" not in get_run(run_id).data.tags
    assert history(run_id, "test/accuracy") == [(0, 0.9)]
    assert get_run(run_id).info.status == "FINISHED"


def interrupt(outputs):
    def killed():
        with recorded("train", outputs.params) as record:
            record.begin("key", {})
            record.log_row(0, ROWS[0])
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        killed()


def test_a_training_that_is_resumed_goes_on_in_its_run_without_doubled_points():
    outputs = Workspace()

    interrupt(outputs)
    (first,) = all_runs()
    assert first.info.status == "KILLED"
    assert outputs.train("key") == first.info.run_id
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert history(run.info.run_id, "train/running_loss") == [(10, 2.1), (12, 1.9)]


@pytest.mark.parametrize("variable", ["DVC_EXP_NAME", "MLFLOW_PARENT_RUN_ID"])
@pytest.mark.parametrize(("began", "finishes"), [("a" * 32, None), (None, "b" * 32), ("a" * 32, "b" * 32)])
def test_a_run_belongs_to_the_experiment_or_sweep_that_finishes_its_training(monkeypatch, variable, began, finishes):
    outputs = Workspace()
    if began:
        monkeypatch.setenv(variable, began)
    interrupt(outputs)
    if finishes:
        monkeypatch.setenv(variable, finishes)
    else:
        monkeypatch.delenv(variable)
    run_id = outputs.train("key")
    assert outputs.evaluate() == run_id
    (run,) = all_runs()
    tag = {"DVC_EXP_NAME": "dvc.exp.name", "MLFLOW_PARENT_RUN_ID": "mlflow.parentRunId"}[variable]
    assert run.data.tags.get(tag) == finishes


def test_seeds_that_are_resumed_go_on_in_their_runs():
    outputs = SeedsWorkspace()
    first = outputs.train("key")
    assert outputs.train("key") == first
    outputs.evaluate()
    assert len(all_runs()) == 3
    check_seeds(first)


@pytest.mark.parametrize("kind", [Workspace, SeedsWorkspace])
def test_a_delivery_that_breaks_anywhere_and_is_tried_again_gives_the_same_run(kind, monkeypatch):
    """Every call to the store fails once, before it or (the answer lost) after it was carried out."""
    calls = 0
    outputs = kind()
    names = ["create_run", "log_batch", "set_tag", "log_inputs", "log_artifacts", "set_terminated", "update_run"]
    names += ["create_logged_model", "log_model_artifacts", "log_outputs", "finalize_logged_model"]

    def shaky(original, lost):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            fail = calls == number
            if fail and not lost:
                raise mlflow.MlflowException("no connection")
            answer = original(*arguments, **keywords)
            if fail:
                raise mlflow.MlflowException("the answer was lost")
            return answer

        return call

    def stubborn(journal):
        for _ in range(3):
            try:
                return original_deliver(journal)
            except mlflow.MlflowException:
                pass
        raise AssertionError("a single failure stopped it for good")

    original_deliver = tracking.deliver
    monkeypatch.setattr(tracking, "deliver", stubborn)
    number, total = 0, None
    while total is None or number < total:
        number += 1 if number == 0 else 4  # every fourth: each place is met over the two kinds of failure
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{kind.__name__} {number}")
        calls = 0
        with monkeypatch.context() as patch:
            for name in names:
                original = getattr(mlflow.MlflowClient, name)
                patch.setattr(mlflow.MlflowClient, name, shaky(original, lost=number % 2 == 0))
            run_id = outputs.train()
            assert outputs.evaluate() == run_id
        total = calls
        runs = [run for run in all_runs() if run.info.experiment_id == get_run(run_id).info.experiment_id]
        assert len(runs) == (3 if outputs.params.train.seeds > 1 else 1)
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            for name in run.data.metrics:
                steps = [step for step, _ in history(run.info.run_id, name)]
                assert len(steps) == len(set(steps)), name
        run = get_run(run_id)
        assert history(run_id, "train/learning_rate") == [(10, 0.05), (12, 0.04)]
        assert history(run_id, "test/accuracy") == [(0, 0.9)]
        assert len(run.outputs.model_outputs) == 1
        assert run.data.tags["mlflow.classifier.evaluated"] == "true"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("loss is nan"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_run_that_does_not_end_well_says_so(error, status):
    outputs = Workspace()

    def fail():
        with recorded("train", outputs.params) as record:
            record.begin("key", {})
            record.log_row(0, ROWS[0])
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


def test_a_journal_is_left_to_its_stage_from_the_first_moment_and_goes_with_it(workspace):
    """One stage's recorder starts while another stage has not begun its run yet: sweeps have that all the time."""
    code = "import sys; from classifier.recording.journal import new_journal; new_journal('train')"
    command = [sys.executable, "-c", f"{code}.append('files', path='logs'); print(flush=True); sys.stdin.read()"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as stage:
        stage.stdout.readline()
        assert tracking.deliver_waiting()[0] == []
        assert len(waiting_journals()) == 1
        stage.stdin.close()
    assert tracking.deliver_waiting() == ([], [])
    assert waiting_journals() == []


def test_a_recorder_that_is_killed_while_it_uploads_the_model_leaves_nothing_outside_the_journal(tmp_path_factory):
    outputs = Workspace()
    with written("train", outputs.params) as record:
        record.begin("key", {})
        record.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    temporary = tmp_path_factory.mktemp("temporary")
    script = (
        "import mlflow, os, sys; from pathlib import Path; from classifier.recording.journal import Journal; "
        "from classifier.tracking.delivery import deliver; "
        "mlflow.MlflowClient.log_model_artifacts = lambda *given: os._exit(9); deliver(Journal(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(record.journal.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    assert subprocess.run(command, env=environment).returncode == 9
    assert not list(temporary.rglob("MLmodel"))
    (run_id,) = [line.rpartition(" ")[2] for line in tracking.deliver_waiting()[0]]
    assert len(get_run(run_id).outputs.model_outputs) == 1
    assert not record.journal.folder.exists()
