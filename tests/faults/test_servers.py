"""The tracking server is down, dies, answers 500 or hangs: training gives the same bytes, and no data is lost."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from classifier.recording.journal import waiting_journals
from classifier.recording.store import sqlite_uri
from classifier.tracking import delivery as tracking
from stages.train import main as train
from tests.faults.attack import PERCENT
from tests.projects import sha256_of
from tests.recorded import all_runs, history
from tests.samples import ROOT, write_digits

ARGUMENTS = ["params.yaml", "data/normalized", "data/pretrained", "models/classifier", "reports/train"]


class Line:
    """A TCP proxy to the tracking server on a fixed port, in one of several conditions.

    `away`: connections are refused; `dies`: like `away` after a number of bytes have come back; `fails`: every response
    has status 500; `hangs`: requests are accepted and never answered; `well`: requests are forwarded.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.condition, self.left = "away", 0
        self.listener: socket.socket | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def be(self, condition: str, left: int = 0) -> None:
        self.condition, self.left = condition, left
        if condition == "away":
            self.close()
        elif self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=50)
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            self.listener.close()
            self.listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.condition == "hangs":
                while self.condition == "hangs":
                    time.sleep(0.05)
            elif self.condition == "fails":
                client.recv(65536)
                client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                with socket.create_connection(("127.0.0.1", self.server_port)) as server:
                    forth = threading.Thread(target=self._copy, args=(client, server, False), daemon=True)
                    forth.start()
                    self._copy(server, client, True)
                    forth.join(5)

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while content := source.recv(4096):
                if counted and self.condition == "dies":
                    self.left -= len(content)
                    if self.left < 0:
                        self.be("away")
                if self.condition == "away":
                    break
                target.sendall(content)
            target.shutdown(socket.SHUT_RDWR)
            source.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a real tracking server."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(folder / "mlflow.db")]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def line(server, workspace, monkeypatch):
    """A proxy to the server, as the store of a project with small data."""
    line = Line(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", line.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    write_digits(workspace / "data/normalized", train=600)
    text = (ROOT / "params.yaml").read_text()
    for old, new in (("epochs: 20", "epochs: 3"), ("log_every: 10", "log_every: 1"), ("every: 500", "every: 5")):
        assert old in text
        text = text.replace(old, new)
    (workspace / "params.yaml").write_text(text)
    yield line
    line.close()


def hashes(workspace):
    files = [path for name in ("models", "reports") for path in (workspace / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(workspace)): sha256_of(path) for path in files}


@pytest.mark.slow
def test_training_never_fails_and_nothing_is_lost(line, workspace, attack, monkeypatch, capsys):
    row = attack("tracking server away at the start, dying in the middle, answering 500, hanging")
    line.be("well")
    train(ARGUMENTS)
    expected, rows = hashes(workspace), (workspace / "reports/train/history.csv").read_text().splitlines()[1:]
    assert not waiting_journals()
    conditions = [condition for condition in ("away", "dies", "fails", "hangs") for _ in range(10)]
    if PERCENT <= 10:
        conditions = conditions[::10]  # one of each
    for number, condition in enumerate(conditions):
        with row.case(f"{condition} {number}"):
            monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{condition} {number}")
            line.be("well")
            line.be(condition, left=row.random.randrange(200, 40_000))
            capsys.readouterr()
            train(ARGUMENTS)
            assert hashes(workspace) == expected
            waiting = len(waiting_journals())
            assert waiting == 1 or condition == "dies"  # it may die after the last byte
            line.be("well")
            tracking.deliver_waiting()
            assert not waiting_journals()
            assert tracking.deliver_waiting() == ([], [])
            tracking.open_store()
            (run,) = [run for run in all_runs() if is_of(run, number)]
            assert run.info.status == "FINISHED"
            points = history(run.info.run_id, "train/learning_rate")
            assert [step for step, _ in points] == [int(line.split(",")[0]) for line in rows]
            assert len(run.outputs.model_outputs) == 1
    row.verdict()


def is_of(run, number):
    """Whether the run belongs to this case's experiment."""
    return tracking.mlflow.get_experiment(run.info.experiment_id).name.split()[-1] == str(number)


@pytest.mark.skipif(PERCENT < 100, reason="measures time: only make faults does, on a quiet machine")
def test_training_is_not_slowed_by_a_server_that_hangs(line, workspace, attack, monkeypatch):
    """Compares medians of six trainings of a few seconds, alternating between a responding and a hanging server.

    Measures the optimizer steps only, without the start and end of the stage, which may wait for the recorder. MLflow's
    requests have their default timeout.
    """
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    from classifier.training import loop as training

    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("epochs: 3", "epochs: 60"))
    seconds: dict[str, list[float]] = {"well": [], "hangs": []}
    original = training.fit

    def timed(*arguments, **keywords):
        begin = time.perf_counter()
        original(*arguments, **keywords)
        seconds[condition].append(time.perf_counter() - begin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", timed)
        for condition in ["well", "hangs"] * 6:
            line.be(condition)
            train(ARGUMENTS)
    ratio = statistics.median(seconds["hangs"]) / statistics.median(seconds["well"])
    row = attack(f"optimizer steps (`fit`) beside a hanging server, {ratio:.3f} x the time beside one that is well")
    with row.case(ratio):
        assert ratio <= 1.05
    row.verdict()
