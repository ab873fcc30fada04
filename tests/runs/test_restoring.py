"""Outputs that no run has become one: real ones, committed by DVC, but small and untrained."""

import json
import shutil
import sys
from copy import copy
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from classifier.commands.application import call
from classifier.project.ownership import claim, release
from classifier.recording.journal import waiting_journals
from classifier.repository.code import git_state
from classifier.repository.lockfile import read_lock
from classifier.runs.restoring import made_by, record
from classifier.tracking.delivery import deliver
from tests.projects import OUTPUTS, Project
from tests.recorded import METRICS, SeedsWorkspace, Workspace, all_runs, empty_store, files, history, written


class Made(Project):
    """A project with its code in git, whose outputs DVC has committed; dvc.lock is not in git yet."""

    def __init__(self, folder, outputs=Workspace):
        """In the current folder."""
        super().__init__(folder)
        if outputs is SeedsWorkspace:
            self.edit_params("train:\n  seed: 0\n  seeds: 1 ", "train:\n  seed: 4\n  seeds: 2 ")
        self.outputs = outputs()
        if self.outputs.test_metrics:
            table = pd.DataFrame([{"seed": seed, **values} for seed, values in self.outputs.test_metrics.items()])
            table.to_csv(self.outputs.reports / "replicas.csv", index=False)
        for folder in ("data/raw", "data/pretrained"):
            Path(folder).mkdir()
            Path(folder, "manifest.json").write_text("{}")
        Path("reports/data").mkdir()
        Path("reports/data/summary.json").write_text('{"leaks": 0}')
        self.run("dvc", "commit", "--force", "--quiet")

    def change_code(self, old, new):
        path = self.folder / "stages/train.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def head(self):
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Made(folder)


@pytest.fixture
def made(workspace, template):
    """A copy for the test, which is the current folder."""
    shutil.copytree(template.folder, workspace, dirs_exist_ok=True)
    made = copy(template)
    made.folder = workspace
    return made


def recorded_code(run_id, name):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=f"code/{name}")).read_text()


def test_a_pulled_clone_is_recorded_once_with_what_dvc_lock_says(made, tmp_path_factory, monkeypatch, capsys):
    remote, clone = tmp_path_factory.mktemp("remote"), tmp_path_factory.mktemp("clone")
    made.run("dvc", "remote", "add", "--default", "there", str(remote))
    made.run("dvc", "push", "--quiet")
    made.commit("results")
    made.git("clone", "--quiet", str(made.folder), str(clone))
    made.folder = clone
    made.run("dvc", "pull", "--quiet")
    made.edit_params("learning_rate: 0.05", "learning_rate: 0.7")
    answer = json.loads(made.run(sys.executable, "-m", "classifier", "record", "--json"))
    run_id = answer["run"]
    assert answer == {"run": run_id, "new": True, "source": f"commit {made.head}"}
    monkeypatch.chdir(clone)
    monkeypatch.setenv("DVC_ROOT", str(clone))
    call(["record"])
    assert f"run {run_id} has these outputs" in capsys.readouterr().out
    (run,) = all_runs()
    lock = read_lock()
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.data.params == {key: str(value) for key, value in made.outputs.params.flat().items()}
    assert json.loads(recorded_code(run_id, "params.yaml"))["train"]["learning_rate"] == 0.05
    assert run.data.metrics["test/accuracy"] == METRICS["accuracy"]
    assert history(run_id, "train/running_loss") == [(10, 2.1), (12, 1.9)]
    expected = {
        "git.commit": made.head,
        "git.dirty": "false",
        "dvc.data": lock.outputs["data/normalized"],
        "dvc.model": lock.outputs["models/classifier"],
        "mlflow.classifier.weights_sha256": made.outputs.meta.weights_sha256,
        "mlflow.classifier.restored": "true",
        "mlflow.classifier.evaluated": "true",
    }
    assert expected.items() <= run.data.tags.items()
    assert not [
        name for name in run.data.tags if name.startswith("mlflow.classifier.env.")
    ]  # of which nothing is known
    assert files(run_id) == {
        "code/params.yaml", "code/dvc.lock", "data/summary.json", "train/history.csv", "train/layers.csv",
        "train/metrics.json", "train/summary.json", "train/manifest.json", "evaluate/metrics.json"
    }  # fmt: skip
    assert len(run.outputs.model_outputs) == 1


def test_the_run_that_the_stages_recorded_is_found_and_completed(made):
    run_id = made.outputs.train()
    completed, again = record(), record()
    assert (completed.run.info.run_id, completed.new) == (run_id, True)
    assert completed.run.data.metrics["test/accuracy"] == METRICS["accuracy"]
    assert "mlflow.classifier.restored" not in completed.run.data.tags
    assert (again.run.info.run_id, again.new) == (run_id, False)
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "mlflow.classifier.evaluation_key", "another evaluation's")
    client.log_metric(run_id, "test/accuracy", 0.1, step=1)
    assert record().run.info.run_id != run_id


def test_seeds_are_nested_runs(workspace):
    outputs = Made(workspace, outputs=SeedsWorkspace).outputs
    tags = record().run.data.tags
    nested = {run.data.params["train.seed"]: run for run in all_runs() if "mlflow.classifier.seed" in run.data.tags}
    assert {seed: run.data.metrics["test/accuracy"] for seed, run in nested.items()} == {"4": 0.8, "5": 0.9}
    assert tags["dvc.model"] == read_lock().outputs["models/classifier"]
    assert tags["mlflow.classifier.chosen_seed"] == str(outputs.meta.seed)


def test_the_commit_is_that_of_dvc_lock_when_the_code_was_changed_since(made):
    made.commit("results")
    results = git_state()
    assert made_by(read_lock()) == results
    made.change_code("Train a network", "Train a net,")
    made.commit("later")
    made.change_code("Train a net,", "Train a model,")
    assert made_by(read_lock()) == results


def test_the_commit_is_that_of_this_very_dvc_lock_when_another_one_was_committed_since(made):
    made.commit("results")
    results, lock = git_state(), Path("dvc.lock").read_text()
    made.change_code("Train a network", "Train a net,")
    Path("dvc.lock").write_text(lock.replace("size: ", "size:  "))
    made.commit("the results of an update")
    Path("dvc.lock").write_text(lock)
    made.commit("the results of before")
    assert made_by(read_lock()) == results


def test_code_that_was_not_committed_is_a_diff_and_code_that_is_gone_has_no_commit(made):
    (made.folder / "classifier/project/__pycache__").mkdir(exist_ok=True)
    (made.folder / "classifier/project/__pycache__/left.pyc").touch()
    made.change_code("Train a network", "Train a net,")
    made.git("commit", "-q", "-m", "another", "stages/train.py")
    state = made_by(read_lock())
    assert state.commit is None
    assert "neither in HEAD" in state.problem
    made.change_code("Train a net,", "Train a network")
    state = made_by(read_lock())
    assert (state.commit, state.problem) == (made.head, "")
    assert b'\n+"""Train a network' in state.diff


def test_a_clone_whose_git_changes_line_ends_runs_no_stage_again(made, tmp_path_factory):
    made.commit("results")
    clone = copy(made)
    clone.folder = tmp_path_factory.mktemp("clone")
    made.git("clone", "--quiet", "--config", "core.autocrlf=true", ".", str(clone.folder))
    clone.run("dvc", "config", "--local", "cache.dir", str(made.folder / ".dvc/cache"))
    clone.run("dvc", "checkout", "--quiet")
    assert clone.run("dvc", "status") == "Data and pipelines are up to date.\n"


def change_weights():
    Path("models/classifier/weights.safetensors").chmod(0o644)
    with Path("models/classifier/weights.safetensors").open("ab") as file:
        file.write(b"\0")


def change_dependency():
    """As if evaluate had run before train ran again."""
    head, evaluate, tail = Path("dvc.lock").read_text().partition("\n  evaluate:\n")
    tail = tail.replace(read_lock().outputs["models/classifier"], f"{0:032}.dir")
    Path("dvc.lock").write_text(head + evaluate + tail)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weights, "models/classifier has the hash .* says .*: dvc checkout"),
        (lambda: shutil.rmtree("reports/train"), "reports/train does not exist: dvc pull"),
        (change_dependency, "its stage evaluate used a different models/classifier; run dvc repro"),
        (Path("dvc.lock").unlink, "dvc.lock does not exist"),
        (lambda: Path("dvc.lock").write_text("stages: ["), "dvc.lock is corrupt"),
        (lambda: Path("dvc.lock").write_text("stages: {}"), "data/normalized is not in dvc.lock"),
    ],
)
def test_outputs_that_are_not_those_of_dvc_lock_are_refused(made, damage, message):
    damage()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        record()
    assert "\n" not in str(error.value)
    assert (made.folder / "mlflow.db").read_bytes() == empty_store()


def test_no_journal_is_left_when_an_output_is_damaged(made):
    (made.folder / "reports/train/history.csv").write_text("damaged")
    made.run("dvc", "commit", "--force", "--quiet")
    with pytest.raises(ValueError, match="is not a history"):
        record()
    assert not list((made.folder / ".pipeline/journal").iterdir())


@pytest.mark.slow
def test_an_older_journal_of_the_run_that_another_process_holds_is_one_line(made):
    outputs = made.outputs
    with written("train", outputs.params) as train:
        train.begin("key", {})
        train.log_data(outputs.data, outputs.data_meta)
        train.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    handle = claim(train.journal.folder)
    said = made.run(sys.executable, "-m", "classifier", "record", check=False)
    assert made.returncode == 1
    assert said == f"classifier: {train.journal.folder}, of the same run, goes first: classifier sync\n"
    assert [path.name for path in train.journal.folder.parent.glob("*-*")] == [train.journal.folder.name]
    release(handle)
    assert "recorded: run" in made.run(sys.executable, "-m", "classifier", "record")
    assert "has these outputs" in made.run(sys.executable, "-m", "classifier", "record")


def test_in_a_deleted_experiment_nothing_is_recorded_now_or_later(made):
    run_id = record().run.info.run_id
    client, experiment = mlflow.MlflowClient(), mlflow.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(OSError, match=f"was deleted in MLflow: mlflow experiments restore -x {experiment}"):
        record()
    assert waiting_journals() == []
    client.restore_experiment(experiment)
    assert (record().run.info.run_id, record().new) == (run_id, False)
    assert len(all_runs()) == 1


def test_outputs_that_a_run_has_by_the_time_of_their_delivery_are_not_recorded_again(made):
    """As when `classifier record` was killed in between, and another machine was quicker."""
    outputs = made.outputs
    with written("evaluate", outputs.params) as late:
        digest = read_lock().outputs["data/normalized"]
        found = {"tags": {"dvc.data": digest}, "metrics": METRICS}
        late.begin("late", {}, outputs.meta.weights_sha256, outputs=found)
    run_id = record().run.info.run_id  # delivers what waits first
    assert mlflow.get_run(run_id).data.tags["mlflow.classifier.evaluated"] == "true"
    runs = {run.info.run_id for run in all_runs()}
    with written("evaluate", outputs.params) as later:
        later.begin("later", {}, outputs.meta.weights_sha256, outputs=found)
    assert deliver(later.journal) == run_id
    assert {run.info.run_id for run in all_runs()} == runs


@pytest.mark.slow
def test_what_dvc_restored_from_its_run_cache_becomes_one_run(tmp_path):
    """The whole way: the stages execute nothing, and so record nothing."""
    project = Project(tmp_path)
    project.edit_params("epochs: 20", "epochs: 1")
    project.commit("quick")
    assert project.repro() == ["download", "normalize", "pretrained", "train", "evaluate"]
    made = project.hashes()
    for out in (*OUTPUTS, "mlartifacts"):
        shutil.rmtree(tmp_path / out)
    for file in ("dvc.lock", "mlflow.db"):
        (tmp_path / file).unlink()
    assert project.repro() == []
    assert project.hashes() == made
    assert not (tmp_path / "mlflow.db").exists()
    assert "recorded: run" in project.run(sys.executable, "-m", "classifier", "record")
    assert "nothing to do: run" in project.run(sys.executable, "-m", "classifier", "record")
    assert project.query("SELECT status FROM runs") == [("FINISHED",)]
    assert project.run_tags("mlflow.classifier.restored") == ["true"]
    accuracy = project.query("SELECT value FROM latest_metrics WHERE key = 'test/accuracy'")
    assert accuracy == [(project.metrics()["accuracy"],)]
