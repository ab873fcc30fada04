"""A sweep's key, its record in a real MLflow store, and what an experiment's runs say about it."""

import json
import shutil
from contextlib import suppress
from uuid import uuid4

import mlflow
import pytest
from mlflow.entities import Metric, Param

from classifier.recording.journal import Journal
from classifier.repository.clones import Baseline
from classifier.repository.git import Repository
from classifier.sweeps.experiments import Experiment, Outcome
from classifier.sweeps.record import Record, is_done, outcome_of, sweep_key
from classifier.sweeps.running import Sweep
from classifier.sweeps.search import Search
from tests.recorded import own_store, written
from tests.samples import ROOT, file_params

POINT = {"train.seed": 3, "train.learning_rate": 0.1}
FAST = Experiment("sweep-1-1", POINT)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all tests of this module: a fresh one takes 2 s."""
    root = tmp_path_factory.mktemp("project")
    with own_store(root):
        yield root


@pytest.fixture
def record(store, tmp_path):
    """A sweep that has no run yet but its own."""
    return begun(Record(uuid4().hex, "sweep-1", tmp_path))


def begun(record):
    record.begin("classifier sweep train.seed=3")
    return record


def child(record, status, values=POINT, name="sweep-1-1", metrics=None, **tags):
    """A run as the stages leave it."""
    tags = {"mlflow.parentRunId": record.id, "dvc.exp.name": name, **tags}
    run_id = record.client.create_run(record.experiment, tags=tags, start_time=child.time).info.run_id
    child.time += 1000
    params = [Param(key, str(value)) for key, value in values.items()]
    points = [Metric(key, value, 0, 0) for key, value in (metrics or {}).items()]
    record.client.log_batch(run_id, points, params)
    record.client.set_terminated(run_id, status, child.time) if status != "RUNNING" else None
    return run_id


child.time = 1_700_000_000_000


def test_the_key_covers_values_params_and_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = file_params()
    keys = [
        sweep_key([POINT], params),
        sweep_key([{**POINT, "train.seed": 4}], params),
        sweep_key([POINT], params.override({"train.epochs": 3})),
    ]
    assert len(set(keys)) == 3
    promote = params.promote.model_copy(update={"significance": 0.1})
    assert sweep_key([POINT], params.model_copy(update={"promote": promote})) == keys[0]  # it decides no result


def test_the_key_covers_the_users_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "photos").mkdir()
    params = file_params().override({"download.dataset": "folder", "download.folder": "photos"})
    keys = []
    for content in ("one", "two"):
        (tmp_path / "photos/1").write_text(content)
        keys.append(sweep_key([POINT], params))
    assert len(set(keys)) == 2


def test_the_key_changes_with_the_code_that_a_stage_uses_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        "stages: {train: {cmd: x, deps: [used.py, library, data], outs: [{model: {persist: true}}]},"
        " evaluate: {cmd: y, deps: [model]}, normalize: {cmd: z, outs: [data]}}"
    )

    def key_after(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(uuid4().hex)
        return sweep_key([POINT], file_params())

    key_after("library/first.py")
    key = key_after("used.py")
    for name in ("other.py", "data/train", "model/weights", "library/__pycache__/deep.pyc"):
        assert key_after(name) == key, name
    for name in ("used.py", "library/a.py", "library/deep/b.py", "library/deep/b.py"):
        before, key = key, key_after(name)
        assert key != before, name
    (tmp_path / "library/deep/b.py").rename(tmp_path / "library/deep/c.py")
    assert sweep_key([POINT], file_params()) != key


def test_the_same_key_in_the_same_folder_finds_the_same_parent(record, tmp_path):
    record.end("KILLED")
    again = Record(record.key, "sweep-1", tmp_path)
    assert again.id == record.id
    assert mlflow.get_run(record.id).info.status == "KILLED"  # looking changes nothing
    again.begin("classifier sweep train.seed=3 --jobs 2")
    parent = mlflow.get_run(record.id)
    assert parent.info.status == "RUNNING"
    assert parent.info.run_name == "sweep-1"
    assert parent.data.tags["mlflow.classifier.sweep_key"] == record.key
    assert parent.data.tags["sweep.command"] == "classifier sweep train.seed=3"
    assert Record(uuid4().hex, "sweep-2", tmp_path).id == ""


def test_a_sweep_whose_run_was_deleted_gets_a_new_one_and_keeps_its_id(record):
    first, known = record.id, record.file.read_text()
    record.client.delete_run(first)
    assert begun(record).id != first
    assert mlflow.get_run(record.id).data.tags["mlflow.classifier.sweep_id"] == record.file.read_text().split()[0]
    assert record.file.read_text() == known


def test_a_sweep_in_a_deleted_experiment_says_how_to_restore_it(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    experiment = begun(Record("key", "sweep-1", tmp_path)).experiment
    with written("train", file_params()) as stage:
        stage.begin("key", {})
    mlflow.delete_experiment(experiment)
    with pytest.raises(OSError, match=f"'gone' was deleted in MLflow: mlflow experiments restore -x {experiment}"):
        Record("key", "sweep-1", tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")  # whose sweeps do not wait for that journal
    begun(Record("key", "sweep-1", tmp_path / "other"))
    mlflow.MlflowClient().restore_experiment(experiment)
    stage.journal.remove()


def test_another_persons_sweep_of_the_same_key_is_left_alone(record, tmp_path):
    """Two clones of the project with one store."""
    child(record, "FINISHED", evaluated="true")
    record.end("FINISHED")
    before = mlflow.get_run(record.id)
    theirs = Record(record.key, "sweep-1", tmp_path / "another clone's")
    assert (theirs.id, theirs.known()) == ("", {})
    begun(theirs)
    theirs.end("KILLED")
    assert theirs.id != record.id
    assert mlflow.get_run(record.id).to_dictionary() == before.to_dictionary()
    assert Record(record.key, "sweep-1", tmp_path).id == record.id


def test_a_copy_of_a_project_has_a_sweep_of_its_own_and_a_moved_project_keeps_its_sweep(record, tmp_path):
    """With one store, as of a team; also when the sweep is run again after the move and the project copied then."""
    project, first_copy, moved, second_copy = (tmp_path / name for name in ("é a", "copy", "moved", "copy of moved"))

    def sweep_in(folder):
        return Record(record.key, "sweep-1", folder)

    original = begun(sweep_in(project))
    shutil.copytree(project, first_copy)
    assert sweep_in(first_copy).id == ""
    copied = begun(sweep_in(first_copy))
    assert copied.id != original.id
    project.rename(moved)
    assert begun(sweep_in(moved)).id == original.id
    shutil.copytree(moved, second_copy)
    assert [sweep_in(folder).id for folder in (first_copy, moved, second_copy)] == [copied.id, original.id, ""]
    shutil.rmtree(moved)
    assert sweep_in(second_copy).id == original.id  # nobody else has it


def test_a_link_to_a_project_is_no_copy(record, tmp_path):
    (tmp_path / "link").symlink_to(record.file.parent)
    assert Record(record.key, "sweep-1", tmp_path / "link").id == record.id


def test_a_finished_run_counts_once_it_is_evaluated(record):
    child(record, "FINISHED")
    assert record.outcome(FAST) is None
    metrics = {"validation/accuracy": 0.9, "validation/loss": 0.3, "test/accuracy": 0.8, "train/loss": 1.0}
    run_id = child(record, "FINISHED", metrics=metrics, evaluated="true")
    child(record, "KILLED")  # a later one changes nothing
    values = {"validation_accuracy": 0.9, "validation_loss": 0.3}  # what the test split says may not choose
    assert record.outcome(FAST) == Outcome("finished", run_id, None, 1.0, values)
    assert list(record.known()) == ["sweep-1-1"]
    assert len(record.known()["sweep-1-1"]) == 3


def test_of_seeds_the_mean_counts(record):
    metrics = {"validation/accuracy": 0.9, "validation/accuracy_mean": 0.7}
    child(record, "FINISHED", metrics=metrics, evaluated="true")
    assert record.outcome(FAST).metrics == {"validation_accuracy": 0.7}


def test_a_failed_run_counts_with_its_error_and_a_killed_or_running_one_does_not(record):
    child(record, "RUNNING")
    assert record.outcome(FAST) is None
    killed = child(record, "KILLED", error="SystemExit: 143")
    assert record.outcome(FAST) == Outcome("killed", killed, "SystemExit: 143", 1.0)
    failed = child(record, "FAILED", error="ValueError: too high")
    assert record.outcome(FAST) == Outcome("failed", failed, "ValueError: too high", 1.0)


def test_of_runs_without_a_result_the_newest_counts(record):
    """Older ones are of a time before what had failed was tried again."""
    child(record, "FAILED", error="no space left")
    killed = child(record, "KILLED", error="SystemExit: 143")
    assert record.outcome(FAST).run_id == killed
    child(record, "RUNNING")
    assert record.outcome(FAST) is None
    finished = child(record, "FINISHED", evaluated="true")
    assert record.outcome(FAST).run_id == finished


def test_what_a_stage_recorded_has_arrived_once_its_journal_is_delivered(record, monkeypatch):
    monkeypatch.setenv("MLFLOW_PARENT_RUN_ID", record.id)
    monkeypatch.setenv("DVC_EXP_NAME", FAST.name)
    with suppress(KeyboardInterrupt), written("train", file_params().override(POINT)) as stage:
        assert record.has_arrived(FAST)  # its journal does not name an experiment yet
        stage.begin(uuid4().hex, {})
        with monkeypatch.context() as patch:
            assert not record.has_arrived(FAST)
            patch.setattr(Journal, "begin", None)  # which is not read again
            assert not record.has_arrived(FAST)
            assert record.has_arrived(Experiment("sweep-1-2", POINT))
        raise KeyboardInterrupt
    assert record.outcome(FAST) is None
    record.next_delivery = 0.0
    assert record.has_arrived(FAST)  # nobody delivers it, so that this does
    assert record.outcome(FAST).status == "killed"


def test_a_delivery_that_fails_is_not_tried_again_at_once(record, monkeypatch, capsys):
    monkeypatch.setenv("DVC_EXP_NAME", FAST.name)
    with written("train", file_params()) as stage:
        stage.begin(uuid4().hex, {})
    capsys.readouterr()  # that this is no repository of git

    def refuse():
        raise OSError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("classifier.sweeps.record.deliver_waiting", refuse)
        assert not any(record.has_arrived(FAST) for _ in range(3))
    assert capsys.readouterr().err == "MLflow: refused; earlier runs are not recorded yet: classifier sync\n"
    stage.journal.remove()


def test_what_is_done():
    outcomes = {status: Outcome(status, "run") for status in ("finished", "failed", "killed")} | {"none": None}
    done = {status: is_done("a", outcome, {"a"}, False) for status, outcome in outcomes.items()}
    assert done == {"finished": True, "failed": True, "killed": False, "none": False}
    assert not is_done("a", outcomes["finished"], set(), False)  # DVC has no such experiment, or not its outputs
    assert not is_done("a", outcomes["failed"], {"a"}, True)


def test_a_search_for_fewer_trials_counts_those_alone(record, tmp_path, monkeypatch):
    """As `--search 3` after `--search 5`."""
    for number in range(5):
        child(record, "FAILED", name=f"sweep-1-{number}")
    plan = Search(file_params(), {}, 3, "sweep-1", tmp_path / "study.db")
    monkeypatch.chdir(ROOT)
    baseline = Baseline(ROOT, Repository.of(ROOT), "", b"", [])
    assert Sweep(plan, record, baseline, file_params(), tmp_path, 1).already == 3
    assert Sweep(plan, record, baseline, file_params(), tmp_path, 1, retry_failed=True).already == 0


def test_runs_with_other_values_of_another_name_or_another_sweep_are_not_meant(record, tmp_path):
    child(record, "FINISHED", {**POINT, "train.seed": 4}, evaluated="true")
    child(record, "FINISHED", name="sweep-1-2", evaluated="true")
    other = begun(Record(uuid4().hex, "sweep-1", tmp_path / "other"))
    child(other, "FINISHED", evaluated="true")
    assert record.outcome(FAST) is None
    assert outcome_of({}, record.known()["sweep-1-2"]).status == "finished"


def test_what_failed_before_a_stage_could_record_it_is_recorded(record):
    outcome = record.fail(FAST, "ERROR: no space left", file_params())
    assert outcome == Outcome("failed", outcome.run_id, "ERROR: no space left")
    assert record.outcome(FAST).error == "ERROR: no space left"
    run = mlflow.get_run(outcome.run_id)
    assert run.data.params["train.seed"] == "3"
    assert run.data.params["train.epochs"] == str(file_params().train.epochs)
    assert run.data.tags["mlflow.parentRunId"] == record.id


def test_an_outcome_is_json(record):
    child(record, "FAILED", error="no")
    assert json.loads(json.dumps(vars(record.outcome(FAST))))["error"] == "no"
