"""`classifier sweep` the whole way, with real DVC experiments: killed, continued, searched; and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from classifier.commands.application import call
from classifier.commands.sweep import Lines, described, show_others
from classifier.recording.tags import EVALUATED_TAG, EXPERIMENT_TAG
from classifier.sweeps.experiments import Experiment, Outcome
from tests.processes import words_of
from tests.projects import OUTPUTS, Project
from tests.recorded import forget_store
from tests.samples import ROOT

GRID = ("train.learning_rate=0.02,0.05,100", "--jobs", "2")  # 100 diverges
RATES = {"0.02", "0.05"}


class Lab(Project):
    """A project of its own; what sweeps must leave alone is known."""

    def start(self, *arguments, **variables):
        command = [sys.executable, "-m", "classifier", "sweep", *arguments]
        environment = {**self.variables, "OMP_NUM_THREADS": "2", **variables}
        options = {"cwd": self.folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **options)

    def sweep(self, *arguments, **variables):
        """Exit status, standard output, the lines of standard error."""
        process = self.start(*arguments, **variables)
        answer, said = process.communicate()
        return process.returncode, answer, said.splitlines()

    def wait_for_training(self, process):
        """Until a training that `process` started is under way."""
        while not any(b"[1," in log.read_bytes() for log in self.logs()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)

    def logs(self):
        return self.folder.glob(".pipeline/sweeps/*/logs/*.txt")

    def at_work(self):
        """The processes in the clones."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder / ".pipeline/sweeps") in process.cwd():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def suspend(self):
        """Stop DVC and its stages, which outlive a sweep that is killed; recorders go on."""
        seen = set()
        while new := set(self.at_work()) - seen:
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    if "classifier.tracking.recorder" not in words_of(process):
                        process.suspend()
            seen |= new

    def left_alone(self):
        names = ("status", "--porcelain"), ("stash", "list"), ("rev-parse", "HEAD"), ("branch", "-a")
        return [self.git(*name) for name in names], (self.folder / "params.yaml").read_bytes()

    def experiments(self):
        return {ref.rpartition("/")[2].strip() for ref in self.git("for-each-ref", "refs/exps").splitlines()}

    def children(self, parent):
        """(experiment, learning rate, status, whether it was evaluated) of every run below a sweep's."""
        return self.query(
            "SELECT experiment.value, rate.value, runs.status, evaluated.value IS NOT NULL FROM runs"
            f" JOIN tags AS experiment ON experiment.run_uuid = runs.run_uuid AND experiment.key = '{EXPERIMENT_TAG}'"
            " JOIN tags AS parent ON parent.run_uuid = runs.run_uuid AND parent.key = 'mlflow.parentRunId'"
            " JOIN params AS rate ON rate.run_uuid = runs.run_uuid AND rate.key = 'train.learning_rate'"
            f" LEFT JOIN tags AS evaluated ON evaluated.run_uuid = runs.run_uuid AND evaluated.key = '{EVALUATED_TAG}'"
            f" WHERE parent.value = '{parent}' ORDER BY experiment.value"
        )

    def parent(self, name):
        ((run_id, status),) = self.query(f"SELECT run_uuid, status FROM runs WHERE name = '{name}'")
        return run_id, status


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.edit_params("epochs: 20", "epochs: 1")  # stays uncommitted, and every experiment has it
    return lab


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_keeps_what_failed_and_repeats_nothing(lab):
    before = lab.left_alone()
    killed = lab.start(*GRID)
    lab.wait_for_training(killed)
    lab.suspend()
    killed.kill()
    killed.communicate()
    assert lab.at_work()  # no process was left to stop them

    status, board, said = lab.sweep(*GRID)
    assert status == 1, said  # of the one that failed
    name = said[0].partition(":")[0]
    assert said[0] == f"{name}: 3 experiments; 2 at a time, threads 1; logs in .pipeline/sweeps/{name}/logs"
    assert [line.partition("]")[0] for line in said if line.startswith("[")] == ["[1/3", "[2/3", "[3/3"]
    assert sorted(line.split()[0] for line in said if line.endswith("started")) == [f"{name}-{n}" for n in (1, 2, 3)]
    assert said[-1] == "reading the results of 2 experiments"
    assert "test" not in " ".join(said)  # what the test split says may not choose
    (failure,) = [line for line in said if "failed: " in line]
    assert f"{name}-3  train.learning_rate=100  failed: loss or gradients are not finite" in failure
    run_id, state = lab.parent(name)
    page = f"make ui, then #/experiments/1/runs/{run_id}"
    ending = f"{name}: 2 finished, 1 failed\nrun {name}, id {run_id[:8]}\n{page}\nbest validation accuracy: "
    assert ending in board
    assert "against the best" in board
    assert state == "FINISHED"
    runs = lab.children(run_id)
    assert [run for run in runs if run[2] == "FAILED" or run[3]] == [  # others were killed, or trained and then killed
        (f"{name}-1", "0.02", "FINISHED", 1),
        (f"{name}-2", "0.05", "FINISHED", 1),
        (f"{name}-3", "100.0", "FAILED", 0),
    ]
    assert {state for _, _, state, _ in runs} <= {"FINISHED", "FAILED", "KILLED"}
    assert lab.run_tags("sweep.command") == [f"classifier sweep {' '.join(GRID)}"]
    assert set(lab.run_tags("mlflow.classifier.env.threads")) == {"1"}
    assert {value for (value,) in lab.query("SELECT value FROM params WHERE key = 'train.epochs'")} == {"1"}
    assert lab.experiments() == {f"{name}-1", f"{name}-2"}
    assert lab.left_alone() == before
    assert not lab.at_work()
    assert not list(lab.folder.glob(".pipeline/sweeps/*/clones"))
    assert not list(lab.folder.glob(".pipeline/journal/*-*"))

    status, answer, said = lab.sweep(*GRID, "--json")
    logs = f"logs in .pipeline/sweeps/{name}/logs"
    assert (status, said) == (
        1,
        [
            f"{name}: 3 experiments, 3 of them done already; 2 at a time, threads 1; {logs}",
            "reading the results of 2 experiments",
        ],
    )
    result = json.loads(answer)
    assert (result["sweep"], result["run_id"]) == (name, run_id)
    assert [each["status"] for each in result["experiments"]] == ["finished", "finished", "failed"]
    assert result["experiments"][2]["error"].startswith("DivergedError: ")
    accuracy = {each["name"]: each["metrics"].get("validation_accuracy", 0) for each in result["experiments"]}
    assert (result["best"]["mean"], result["best"]["seeds"]) == (max(accuracy.values()), 1)
    assert accuracy[result["best"]["experiment"]] == result["best"]["mean"]
    assert not any(name.startswith("test") for each in result["experiments"] for name in each["metrics"])
    assert {entry["differing"]["train.learning_rate"] for entry in result["leaderboard"]["entries"]} == RATES
    assert lab.children(run_id) == runs

    lab.run("dvc", "exp", "apply", result["best"]["experiment"])
    assert lab.metrics()["accuracy"] == max(entry["mean"] for entry in result["leaderboard"]["entries"])
    lab.git("checkout", "--quiet", ".")
    lab.edit_params("epochs: 20", "epochs: 1")


@pytest.mark.slow
def test_what_dvc_takes_from_its_cache_is_a_run_of_the_sweep_too(lab):
    """The sweep before has trained this: DVC executes nothing, and so its stages record nothing."""
    status, _, said = lab.sweep("train.learning_rate=0.05", "train.epochs=1")
    assert status == 0, said
    name = said[0].partition(":")[0]
    (log,) = lab.folder.glob(f".pipeline/sweeps/{name}/logs/*.txt")
    assert "Running stage 'train'" not in log.read_text()
    run_id, _ = lab.parent(name)
    assert lab.children(run_id) == [(f"{name}-1", "0.05", "FINISHED", 1)]
    assert f"{name}-1" in lab.experiments()


@pytest.mark.slow
def test_what_failed_is_tried_again_when_asked_and_what_the_cache_lacks_unasked(lab, tmp_path):
    """The second time by a user without a name, as in a container."""
    command = ("train.seed=12",)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/sitecustomize.py").write_text(
        "import sys\nif 'stages.train' in sys.orig_argv: sys.exit('no space left on device')\n"
    )
    (tmp_path / "container").mkdir()
    (tmp_path / "container/sitecustomize.py").write_text("import pwd\npwd.getpwuid = lambda uid: {}[uid]\n")
    nameless = {"PYTHONPATH": str(tmp_path / "container"), "USER": "", "LOGNAME": ""}
    status, _, said = lab.sweep(*command, PYTHONPATH=str(tmp_path / "full"))
    assert status == 1
    name = said[0].partition(":")[0]
    assert "failed: " in said[2]
    assert "no space left on device" in said[2]
    run_id, _ = lab.parent(name)
    failed = (f"{name}-1", "0.05", "FAILED", 0)
    assert lab.children(run_id) == [failed]
    status, _, said = lab.sweep(*command)
    assert status == 1
    assert said[0].startswith(f"{name}: 1 experiment, 1 of them done already; 1 at a time, threads 2; logs in ")
    assert not any("failed: " in line for line in said)

    status, _, said = lab.sweep(*command, "--retry-failed", **nameless)
    assert status == 0, said
    finished = (f"{name}-1", "0.05", "FINISHED", 1)
    assert set(lab.children(run_id)) == {failed, finished}

    lab.run("dvc", "gc", "--workspace", "--force")
    status, answer, said = lab.sweep(*command)
    assert status == 0, said
    assert said[0].startswith(f"{name}: 1 experiment; 1 at a time")
    lab.run("dvc", "exp", "apply", answer.partition("dvc exp apply ")[2].splitlines()[0])
    assert set(lab.hashes()) == {f"{folder}/{file}" for folder, files in OUTPUTS.items() for file in files}
    lab.git("checkout", "--quiet", ".")
    lab.edit_params("epochs: 20", "epochs: 1")
    assert {state for _, _, state, _ in lab.children(run_id)} == {"FAILED", "FINISHED"}


@pytest.mark.slow
def test_a_stage_that_was_killed_is_still_to_do_also_while_its_recorder_hangs(lab):
    """As Linux does when memory runs out: DVC ends at once, and the recorder comes too late."""
    command = ("train.batch_size=4", "train.epochs=4")
    for log in lab.logs():
        log.unlink()
    sweep = lab.start(*command)
    lab.wait_for_training(sweep)
    training = {each.pid: each for each in lab.at_work() if words_of(each)[1:3] == ["-m", "stages.train"]}
    (stage,) = (each for each in training.values() if each.ppid() not in training)  # not those that share its batches
    (recorder,) = (process for process in stage.children() if "classifier.tracking.recorder" in words_of(process))
    recorder.suspend()
    stage.kill()
    time.sleep(3)
    recorder.resume()
    answer, said = sweep.communicate()
    name = said.partition(":")[0]
    assert sweep.returncode == 1
    assert f"[1/1] {name}-1  train.batch_size=4 train.epochs=4  killed: the process exited without reporting" in said
    assert f"{name}: 0 finished, 0 failed, 1 killed" in answer
    run_id, state = lab.parent(name)
    assert state == "KILLED"
    ((_, rate, state, _),) = lab.children(run_id)
    assert state == "KILLED"

    status, _, said = lab.sweep(*command)
    assert status == 0, said
    assert lab.children(run_id) == [(f"{name}-1", rate, "FINISHED", 1)]  # the same run, resumed
    assert lab.parent(name) == (run_id, "FINISHED")


def test_a_store_that_is_away_is_one_line_before_anything_starts(lab):
    before = set((lab.folder / ".pipeline/sweeps").glob("*"))
    command = (sys.executable, "-m", "classifier", "sweep", "train.seed=77")
    said = lab.run(*command, check=False, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert lab.returncode == 1
    assert said.startswith("classifier: MLflow's store http://127.0.0.1:9 cannot be used")
    assert len(said.splitlines()) == 1
    assert set((lab.folder / ".pipeline/sweeps").glob("*")) == before


def test_a_dry_run_says_what_dvc_would_be_told_and_makes_nothing(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab.folder)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    before = lab.left_alone()
    try:
        call(["sweep", "train.seed=3..4", "train.optimizer=adamw", "--dry-run"])
        call(["sweep", "train.seed=3..4", "train.optimizer=adamw", "--dry-run", "--json"])
        call(["sweep", "train.augment.shift=0", "--search", "9", "--dry-run", "--json"])
        grid, search = capsys.readouterr().out.rsplit("\n{", 1)
    finally:
        forget_store()
    lines = grid.splitlines()
    name = lines[0].partition(":")[0]
    assert lines[:3] == [
        f"{name}: 2 experiments to run, 0 done",
        f"  dvc exp run --name {name}-1 --set-param train.seed=3 --set-param train.optimizer=adamw",
        f"  dvc exp run --name {name}-2 --set-param train.seed=4 --set-param train.optimizer=adamw",
    ]
    todo = {"status": None, "run_id": None, "error": None, "seconds": None, "metrics": {}}
    experiments = [
        {"name": f"{name}-{place}", "values": {"train.seed": seed, "train.optimizer": "adamw"}, **todo}
        for place, seed in [(1, 3), (2, 4)]
    ]
    assert json.loads("\n".join(lines[3:])) == {
        "sweep": name,
        "run_id": None,
        "experiments": experiments,
        "best": None,
        "leaderboard": None,
    }
    planned = json.loads("{" + search)
    assert [each["values"] for each in planned["experiments"]] == [{"train.augment.shift": 0}] * 9
    assert not (lab.folder / f".pipeline/sweeps/{name}").exists()
    assert lab.left_alone() == before


@pytest.mark.slow
def test_ctrl_c_stops_a_search_whose_trial_is_then_finished(lab):
    command = ("train.batch_size=64", "--search", "1")
    before = lab.left_alone()
    for log in lab.logs():
        log.unlink()
    stopped = lab.start(*command)
    lab.wait_for_training(stopped)
    stopped.send_signal(signal.SIGINT)
    answer, said = stopped.communicate()
    assert (stopped.returncode, answer) == (130, "")
    assert "Traceback" not in said
    name = said.partition(":")[0]
    assert "stopping 1 running, which may take 20 s" in said.splitlines()
    assert f"{name}: stopped, 0 of 1 done; run the same command to continue" in said.splitlines()
    run_id, state = lab.parent(name)
    assert state == "KILLED"
    assert not lab.at_work()
    ((_, rate, state, evaluated),) = lab.children(run_id)
    assert (state, evaluated) == ("KILLED", 0)

    status, answer, _ = lab.sweep(*command, "--json")
    assert status == 0
    ((trial, *again),) = lab.children(run_id)  # the same run, resumed
    assert again == [rate, "FINISHED", 1]
    result = json.loads(answer)
    assert result["best"]["experiment"] == trial == f"{name}-0"
    assert result["experiments"][0]["values"] == {"train.batch_size": 64, "train.learning_rate": float(rate)}
    assert lab.parent(name) == (run_id, "FINISHED")
    assert lab.left_alone() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to try; expected KEY=VALUE,VALUE or --search N, as classifier sweep --help shows"),
        (["train.seed=1", "--jobs", "0"], "--jobs 0; allowed is 1 or more"),
        (["--search", "0"], "--search 0; allowed is 1 or more"),
        (["train.seed=1,2", "--search", "3"], "--search with 2 combinations; allowed is one value for each key"),
        (["normalize.validation_fraction=0", "--search", "3"], "normalize.validation_fraction: 0 leaves no images"),
        (["train.learning_rate=0.1", "train.batch_size=8", "--search", "3"], "nothing to search: params.yaml names"),
        (["train.learning_rat=0.1"], "train.learning_rat: unknown key; did you mean train.learning_rate"),
        (["train.seed=1", "--job", "2"], "No such option: --job"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_made(tmp_path, monkeypatch, arguments, message):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".dvc").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        call(["sweep", *arguments])
    assert str(caught.value).startswith(message)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_outcome_is_described_without_test_results():
    metrics = {"validation_accuracy": 0.9, "validation_loss": 0.3}
    assert described(Outcome("finished", "run", None, 1.0, metrics)) == "validation 90.00%, 1.0 s"
    assert described(Outcome("finished", "run", None, 1.0)) == "1.0 s"  # no validation split
    assert described(Outcome("failed", None, "ValueError: too high")) == "failed: too high"


def test_lines_say_how_long_it_may_take(monkeypatch, capsys):
    """Two of four, one of them from an earlier time, and 90 s for the one that this watched."""
    clock = iter([1000.0, 1090.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    sweep = SimpleNamespace(
        plan=SimpleNamespace(names=["a", "b", "c", "d"]),
        record=SimpleNamespace(name="sweep-1"),
        results=[None, None],
        already=1,
        workers=[None],
        threads=2,
        logs="logs",
    )
    lines, experiment = Lines(sweep), Experiment("b", {"train.seed": 1})
    lines(experiment, None)
    lines(experiment, Outcome("finished", "run", None, 88.0))
    assert capsys.readouterr().err.splitlines() == [
        "sweep-1: 4 experiments, 1 of them done already; 1 at a time, threads 2; logs in logs",
        "      b  train.seed=1  started",
        "[2/4] b  train.seed=1  88.0 s; about 3 min left",
    ]


def test_an_error_is_shown_as_it_is(capsys):
    point, error = {"download.mirror": "[/here]"}, "OSError: [/tmp/x] is full :cold:"
    show_others([(Experiment("a", point), Outcome("failed", "0123456789", error))])
    assert capsys.readouterr().out == "a  download.mirror=[/here]  failed: [/tmp/x] is full :cold:; run 01234567\n"
