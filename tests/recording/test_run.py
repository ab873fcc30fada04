"""A stage beside its real recorder: nothing is lost, however the stage ends and whatever the store does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from classifier.commands.application import call
from classifier.recording import deliverer
from classifier.recording import run as recording
from classifier.recording.journal import waiting_journals
from classifier.tracking.connection import open_store
from tests.recorded import ROWS, Workspace, all_runs, files, history
from tests.samples import ROOT, file_params

pytestmark = pytest.mark.usefixtures("repository")


@pytest.fixture
def repository(workspace):
    """The workspace with a commit, without which a stage says that none is recorded."""
    shutil.copy(ROOT / ".gitignore", workspace)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True, cwd=workspace)


STAGE = """
import sys, time
from pathlib import Path
from classifier.params import load_params
from classifier.project.cli import run
from classifier.training.history import HistoryRow
from classifier.recording.run import recording

def main(arguments):
    with recording("train", load_params(Path(arguments[1]))) as record:
        record.begin("key", {"threads": "1"})
        for step in range(3):
            record.log_row(0, HistoryRow(step, 1, step, 0.1, 2.0))
        print("written", flush=True)
        time.sleep(float(arguments[0]))

run(main, "train")
"""


def stage(seconds):
    """A stage that writes three rows and then continues for some seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, str(seconds), str(ROOT / "params.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "written\n"
    return process


def said_by(process):
    """What the rest of a stage prints, but for the line that says that it waits, as it does on a busy machine."""
    return "".join(process.communicate()).replace("train: done; MLflow is still storing its files\n", "")


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def only_run():
    open_store()
    (run,) = all_runs()
    return run


def test_a_run_is_delivered_while_the_stage_runs_and_finished_with_it():
    process = stage(0)
    assert said_by(process) == ""
    run = only_run()
    assert run.info.status == "FINISHED"
    assert history(run.info.run_id, "train/running_loss") == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert "code/environment.json" in files(run.info.run_id)
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert not waiting_journals()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_stage_that_is_stopped_leaves_a_run_that_says_so(number, status):
    process = stage(600)
    begin = time.monotonic()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    assert time.monotonic() - begin < 300  # and not the 600 s of the stage
    wait_until(lambda: not waiting_journals())
    run = only_run()
    assert run.info.status == "KILLED"
    assert len(history(run.info.run_id, "train/running_loss")) == 3
    assert "error" in run.data.tags


def test_a_stage_and_its_recorder_killed_together_leave_a_journal_that_the_next_stage_delivers():
    process = stage(600)
    recorders = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in (*map(int, recorders), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert len(waiting_journals()) == 1
    next_stage = stage(0)
    assert said_by(next_stage) == ""
    assert not waiting_journals()
    run = only_run()  # the same key: a training that was resumed
    assert run.info.status == "FINISHED"
    assert len(history(run.info.run_id, "train/running_loss")) == 3


def sync():
    command = [sys.executable, "-m", "classifier", "sync"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_what_a_store_does_not_take_waits_and_sync_delivers_it_once(workspace, capsys):
    store = workspace / "mlflow.db"
    store.unlink()
    store.mkdir()  # so that SQLite cannot open it
    process = stage(0)
    said = said_by(process)
    assert process.returncode == 0
    assert said.startswith("MLflow: ")
    assert said.endswith(": classifier sync\n")
    assert len(said.splitlines()) == 1
    refused = sync()
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert len(waiting_journals()) == 1
    store.rmdir()
    delivered = sync()
    assert (delivered.returncode, delivered.stderr) == (0, "")
    assert delivered.stdout.startswith("recorded: train, run ")
    call(["sync"])
    assert capsys.readouterr().out == "everything is recorded\n"
    call(["sync", "--json"])
    assert json.loads(capsys.readouterr().out) == {"recorded": [], "not_recorded": []}
    run = only_run()
    assert run.info.status == "FINISHED"
    assert len(history(run.info.run_id, "train/running_loss")) == 3


def test_what_is_for_another_store_or_still_written_is_left_alone(monkeypatch, capsys):
    process = stage(600)
    try:
        other = recording.Recording("train", file_params())
        monkeypatch.setattr(recording, "known_store", lambda: "http://elsewhere")
        other.begin("other", {})
        other.recorder.kill()
        other.recorder.communicate()
        with pytest.raises(SystemExit) as said:
            call(["sync"])
        capsys.readouterr()
        with pytest.raises(SystemExit, match="1"):
            call(["sync", "--json"])
    finally:
        process.kill()
        process.communicate()
    assert len(json.loads(capsys.readouterr().out)["not_recorded"]) == 2
    lines = str(said.value).splitlines()
    assert len(lines) == 2
    assert any("its stage still runs" in line for line in lines)
    assert any("its store is http://elsewhere;" in line for line in lines)


DELIVERER = """
import sys, tempfile, time
from pathlib import Path
from classifier.recording import deliverer
deliverer.BEAT_S = 0.1
with tempfile.NamedTemporaryFile() as model, deliverer.delivering():
    Path(model.name).write_bytes(bytes(1 << 20))
    for _ in range(40):
        if sys.argv[1] == "progresses":
            Path(model.name).read_bytes()  # as when a model takes long to upload
        time.sleep(0.1)
"""


@pytest.mark.parametrize("does", ["progresses", "hangs"])
def test_the_stage_waits_for_a_recorder_as_long_as_it_progresses(monkeypatch, capsys, does):
    """For 4 s, with a patience of 2 s; then what was written is not yet recorded."""
    command = [sys.executable, "-c", DELIVERER, does]
    monkeypatch.setattr(recording, "start_recorder", lambda journal: subprocess.Popen(command, stdin=subprocess.PIPE))
    monkeypatch.setattr(deliverer, "PATIENCE_S", 2)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with recording.recording("train", file_params()) as record:
        record.begin("key", {})
        lock = Path(".pipeline/delivery/lock")
        wait_until(lambda: lock.exists() and lock.read_text())
    assert record.recorder.returncode == (0 if does == "progresses" else -9)
    waiting = "train: done; MLflow is still storing its files"  # said when it takes longer, on a busy machine
    said = [line for line in capsys.readouterr().err.splitlines() if line != waiting]
    hangs = ["MLflow: no progress for 2 s; not yet recorded in MLflow: classifier sync"]
    assert said == ([] if does == "progresses" else hangs)
    assert [event["do"] for event in waiting_journals()[0].read()[0]] == ["begin", "files", "end"]


def test_who_wants_to_deliver_waits_for_a_deliverer_that_progresses_and_names_one_that_hangs(monkeypatch):
    monkeypatch.setattr(deliverer, "PATIENCE_S", 2)
    lock = Path(".pipeline/delivery/lock")
    for does in ("progresses", "hangs"):
        process = subprocess.Popen([sys.executable, "-c", DELIVERER, does], env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda process=process: lock.exists() and f":{process.pid}:" in lock.read_text())
        if does == "progresses":
            with deliverer.delivering():
                assert process.wait(300) == 0
        else:
            expected = f"process {process.pid} .* no progress for 2 s: kill {process.pid}, then classifier sync"
            with pytest.raises(OSError, match=expected), deliverer.delivering():
                pass
            process.kill()
            process.wait()


@pytest.mark.parametrize("store", ["there", "away", "never"])
def test_training_begins_when_its_run_has_or_cannot(monkeypatch, store):
    """`never`: with a recorder that does nothing."""
    monkeypatch.setattr(recording, "SETTLING_S", 0.5 if store == "never" else 500)
    if store == "away":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    if store == "never":
        monkeypatch.setattr(
            recording, "start_recorder", lambda journal: subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        )
    with recording.recording("train", file_params()) as record:
        record.begin("key", {})
        begin = time.monotonic()
        record.settle()
        assert time.monotonic() - begin < 400
        if store == "there":
            assert only_run().info.status == "RUNNING"
            assert psutil.Process(record.recorder.pid).nice() == 10
            autogroup = Path(f"/proc/{record.recorder.pid}/autogroup")
            assert not autogroup.exists() or autogroup.read_text().endswith("nice 10\n")


def test_a_run_is_delivered_although_its_system_metrics_cannot_be(monkeypatch, capfd):
    monkeypatch.setattr(recording, "SETTLING_S", 500)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    with recording.recording("train", file_params()) as record:
        record.begin("key", {})
        record.settle()
    assert only_run().info.status == "FINISHED"
    assert "; the system metrics are lost" in capfd.readouterr().err


@pytest.mark.parametrize("error", [psutil.AccessDenied(), AttributeError("io_counters")])
def test_where_the_bytes_that_a_process_has_read_are_not_told_its_cpu_seconds_are_progress(monkeypatch, error):
    def io_counters(process):
        raise error

    monkeypatch.setattr(psutil.Process, "io_counters", io_counters, raising=False)
    read, computed = deliverer._work()
    assert read == 0
    assert computed > 0


def test_no_password_is_written_down(monkeypatch, workspace):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    process = stage(0)
    _, said = process.communicate()
    assert "127.0.0.1" in said
    assert "secret" not in said
    (journal,) = waiting_journals()
    assert not [path for path in journal.folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_a_run_that_evaluate_makes_knows_nothing_of_the_environment_of_the_training(workspace):
    outputs = Workspace()
    outputs.has_history(ROWS)  # with its manifest
    (workspace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    folders = map(str, (outputs.data, outputs.model, outputs.training, outputs.reports))
    command = [sys.executable, "-m", "stages.evaluate", "params.yaml", *folders]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    run = only_run()
    assert run.data.tags["mlflow.classifier.restored"] == "true"
    assert not [name for name in run.data.tags if name.startswith("mlflow.classifier.env.")]
    assert "code/params.yaml" in files(run.info.run_id)
    assert "code/environment.json" not in files(run.info.run_id)


def test_evaluate_beside_its_recorder_completes_the_run(workspace):
    outputs = Workspace()
    with recording.recording("train", outputs.params) as record:
        record.begin("key", {})
        record.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    with recording.recording("evaluate", outputs.params) as record:
        record.begin("evaluation", {}, outputs.meta.weights_sha256)
        record.log_evaluation({"accuracy": 0.9}, {}, outputs.reports, outputs.model)
    run = only_run()
    assert run.data.metrics["test/accuracy"] == 0.9
    assert run.data.tags["mlflow.classifier.evaluated"] == "true"


def test_what_the_data_hold_is_in_the_run_of_a_training_and_in_one_that_evaluate_makes(workspace):
    outputs, folder = Workspace(), Path("reports/data")
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"leaks": 2, "excluded": 1}')
    (folder / "excluded.csv").write_text("path,reason")
    with recording.recording("train", outputs.params) as record:
        record.begin("key", {})
        record.log_data_report(folder)
        record.log_training(outputs.model, outputs.meta, outputs.training, outputs.histories)
    outputs.meta = outputs.meta.model_copy(update={"weights_sha256": "0" * 64})  # of no training that is recorded
    outputs.evaluate()
    of_runs = [{name for name in files(run.info.run_id) if name.startswith("data/")} for run in all_runs()]
    assert of_runs == 2 * [{"data/summary.json", "data/excluded.csv"}]
    counts = [{name: value for name, value in run.data.metrics.items() if "data/" in name} for run in all_runs()]
    assert counts == 2 * [{"data/leaks": 2, "data/excluded": 1}]
