"""Journals that are delivered out of their order, or late: a run says what it would have said in time."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from classifier.project.ownership import claim, release
from classifier.recording.journal import Journal, waiting_journals
from classifier.recording.run import restore_training
from classifier.tracking import delivery as tracking
from tests.loopback import closed_address
from tests.recorded import (
    METRICS,
    Workspace,
    all_runs,
    get_run,
    history,
    written,
)
from tests.samples import file_params

pytestmark = pytest.mark.usefixtures("workspace")


def train_and_evaluate(outputs):
    """Two undelivered journals of one run."""
    with written("train", outputs.params) as train:
        train.begin("key", {})
        train.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    with written("evaluate", outputs.params) as evaluate:
        evaluate.begin("evaluation", {}, outputs.meta.weights_sha256)
        evaluate.log_evaluation(METRICS, {}, outputs.reports, outputs.model)
    return train.journal, evaluate.journal


def test_of_two_journals_of_a_run_the_older_is_delivered_first():
    train, evaluate = train_and_evaluate(Workspace())
    handle = claim(train.folder)  # as if its stage still ran
    with pytest.raises(OSError, match=f"{train.folder}, of the same run, goes first: classifier sync"):
        tracking.deliver(evaluate)
    assert [journal.folder for journal in waiting_journals()] == [train.folder, evaluate.folder]
    release(handle)
    tracking.deliver(evaluate)
    assert waiting_journals() == []
    (run,) = all_runs()
    assert (run.data.tags["mlflow.classifier.key"], run.data.tags["mlflow.classifier.evaluation_key"]) == (
        "key",
        "evaluation",
    )


def test_of_two_journals_of_a_resumed_training_the_older_is_delivered_first():
    outputs = Workspace()
    journals = []
    for value in (1.0, 2.0):
        with written("train", outputs.params) as record:
            record.begin("key", {})
            record.journal.append("metrics", seed=None, step=int(value), values={"train/loss": value})
        journals.append(record.journal)
    handle = claim(journals[0].folder)
    with pytest.raises(OSError, match="goes first"):
        tracking.deliver(journals[1])
    release(handle)
    run_id = tracking.deliver(journals[1])
    assert history(run_id, "train/loss") == [(1, 1.0), (2, 2.0)]


def test_a_journal_of_another_run_is_not_held_up_by_one_whose_stage_runs():
    outputs = Workspace()
    with written("train", outputs.params) as other:
        other.begin("other", {})
    handle = claim(other.journal.folder)
    assert outputs.train()
    assert tracking.deliver_waiting() == ([], [f"{other.journal.folder}: its stage still runs"])
    release(handle)


def test_half_an_evaluation_does_not_keep_the_values_of_the_next_one_out():
    outputs = Workspace()
    run_id = outputs.train()
    with pytest.raises(ZeroDivisionError):
        outputs.evaluate(fail=True)  # it had got as far as test/accuracy
    with written("evaluate", outputs.params) as record:
        record.begin("again", {}, outputs.meta.weights_sha256)
        record.log_evaluation({"accuracy": 0.75}, {}, outputs.reports, outputs.model)
    copy = Path(shutil.copytree(record.journal.folder, "copy"))
    assert tracking.deliver(record.journal) == run_id
    assert get_run(run_id).data.metrics["test/accuracy"] == 0.75
    assert tracking.deliver(Journal(copy)) == run_id  # once more
    assert history(run_id, "test/accuracy") == [(0, METRICS["accuracy"]), (0, 0.75)]


def test_a_late_evaluation_changes_nothing_of_a_run_that_another_has_completed():
    outputs = Workspace()
    run_id = outputs.train()
    with written("evaluate", outputs.params) as late:
        late.begin("late", {}, outputs.meta.weights_sha256)
        late.log_evaluation({"accuracy": 0.1}, {}, outputs.reports, outputs.model)
    copy = Path(shutil.copytree(late.journal.folder, "copy"))
    late.journal.remove()
    with written("evaluate", outputs.params) as record:
        record.begin("late", {}, outputs.meta.weights_sha256)
        record.log_evaluation(METRICS, {}, outputs.reports, outputs.model)
    assert tracking.deliver(record.journal) == run_id
    before = get_run(run_id).data
    assert tracking.deliver(Journal(copy)) == run_id
    after = get_run(run_id).data
    assert (after.metrics, after.tags) == (before.metrics, before.tags)


def test_a_journal_that_waits_for_another_store_holds_up_nothing_here(monkeypatch):
    """The server is down, and the user continues without it, as the message says."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    outputs = Workspace()
    with written("train", outputs.params) as train:
        train.begin("key", {})
        train.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    run = get_run(outputs.evaluate())
    assert run.data.tags["mlflow.classifier.restored"] == "true"
    where = "its store is http://127.0.0.1:9; to record it in the one in use: classifier sync --from http://127.0.0.1:9"
    assert tracking.deliver_waiting()[1] == [f"{train.journal.folder}: {where}"]


@pytest.mark.parametrize("said", ["http://127.0.0.1:9", "http://127.0.0.1:9/"])
def test_journals_for_a_server_that_got_another_address_are_recorded_on_demand(monkeypatch, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    train, evaluate = train_and_evaluate(Workspace())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [journal.folder for journal in waiting_journals()] == [train.folder, evaluate.folder]
    (run_id, same), left = ([line.split()[-1] for line in lines] for lines in tracking.deliver_waiting(said))
    assert (run_id, left) == (same, [])
    assert get_run(run_id).data.tags["mlflow.classifier.evaluated"] == "true"


def test_a_journal_of_a_newer_version_waits_for_the_update_and_holds_up_no_other():
    outputs = Workspace()
    for key in ("newer", "key"):
        with written("train", outputs.params) as record:
            record.begin(key, {})
    newer, _ = waiting_journals()
    newer.events.write_text(newer.events.read_text().replace('"format": 1', '"format": 2'))
    delivered, left = tracking.deliver_waiting()
    (run,) = all_runs()
    assert (delivered, run.data.tags["mlflow.classifier.key"]) == ([f"train, run {run.info.run_id}"], "key")
    assert left == [
        f"{newer.folder}: it was written by a newer version of this project, in format 2 (this version reads formats "
        "up to 1): update the project"
    ]


def move_clock(journal, hours):
    """As if the machine's clock had stood elsewhere while the journal was written."""
    events = [{**event, "time": event["time"] + hours * 3_600_000} for event in journal.read()[0]]
    journal.events.write_text("".join(f"{json.dumps(event)}\n" for event in events))


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_an_evaluation_that_fails_says_so_whatever_the_clock_says(hours):
    outputs = Workspace()
    run_id = outputs.train()

    def fail():
        with written("evaluate", outputs.params) as record:
            record.begin("evaluation", {}, outputs.meta.weights_sha256)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (journal,) = waiting_journals()
    move_clock(journal, hours)
    assert tracking.deliver(journal) == run_id
    run = get_run(run_id)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "ZeroDivisionError: ")
    assert outputs.evaluate() == run_id
    run = get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags


@pytest.mark.parametrize("hours", [-1, 0, 1])
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_finished_run_stays_so_when_a_journal_of_before_comes_late(stage, hours):
    """That of a killed stage, from a copy of the project."""
    outputs = Workspace()
    weights = outputs.meta.weights_sha256 if stage == "evaluate" else None

    def killed():
        with written(stage, outputs.params) as record:
            record.begin("key", {}, weights)
            if weights:
                restore_training(record, outputs.data, outputs.data_meta, outputs.model, outputs.meta, outputs.training)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    (journal,) = waiting_journals()
    copy = Path(shutil.copytree(journal.folder, "copy"))
    run_id = tracking.deliver(journal)
    assert get_run(run_id).info.status == "KILLED"
    if stage == "train":
        assert outputs.train("key") == run_id
    assert outputs.evaluate() == run_id
    move_clock(Journal(copy), hours)
    assert tracking.deliver(Journal(copy)) == run_id
    run = get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags


def test_while_the_store_is_away_only_the_begin_of_a_journal_is_read(monkeypatch):
    """The rest may be a million points, and the recorder tries every few seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address())
    with written("train", file_params()) as record:
        record.begin("key", {})
    monkeypatch.setattr(Journal, "read", lambda *_: pytest.fail("the whole journal was read"))
    with pytest.raises(OSError, match="cannot be used"):
        tracking.advance(record.journal, None)


def test_journals_for_a_deleted_experiment_wait_with_the_command_that_restores_it():
    tracking.open_store()
    with written("train", file_params()) as record:
        record.begin("key", {})
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("classifier").experiment_id
    client.delete_experiment(experiment)
    delivered, (line,) = tracking.deliver_waiting()
    assert not delivered
    assert line.endswith(
        f"the experiment 'classifier' was deleted in MLflow: mlflow experiments restore -x {experiment}"
    )
    client.restore_experiment(experiment)
    delivered, left = tracking.deliver_waiting()
    assert (len(delivered), left) == (1, [])
