"""The process that serves: what it imports, how it starts and ends, and how a new champion takes over."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import psutil
import pytest
import requests
from safetensors.numpy import load_file

from classifier.serving.server import listening
from tests.processes import run_without
from tests.serving.conftest import png, until

IMAGE = {"Content-Type": "image/png"}


@contextmanager
def serving(project, *arguments, program="classifier"):
    """A process; yields it and its address once it is ready."""
    command = [sys.executable, "-m", *program.split(), *arguments, "--port", "0"]
    variables = project.variables | {"PYTHONPATH": str(project.folder)}
    process = subprocess.Popen(command, cwd=project.folder, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"^serving .* at (http://127\.0\.0\.1:\d+)/$", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def image(served):
    return png(load_file(served.folder / "data/normalized/test.safetensors")["images"][0])


def test_serve_imports_neither_torch_nor_mlflow():
    heavy = ("torch", "mlflow", "pandas", "onnx", "matplotlib")
    run_without(heavy, "import classifier.commands.serve, classifier.serving.server")


def test_sigterm_finishes_the_request_that_runs(served, image):
    with serving(served, "serve", "--model", "model.onnx") as (process, address):
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            head = (
                f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
            )
            connection.sendall(head.encode() + image[:-1])
            until(lambda: "classifier_held_bytes 0.0" not in requests.get(f"{address}/metrics", timeout=5).text)
            process.send_signal(signal.SIGTERM)
            until(lambda: refuses(port))
            connection.sendall(image[-1:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_thousands_of_refused_requests_leave_nothing_in_memory(served):
    """Without garbage collection each would leave its exception and traceback: 14 KiB, 42 MiB in all."""
    with serving(served, "serve", "--model", "model.onnx") as (process, address), requests.Session() as session:
        whole = psutil.Process(process.pid)

        def refused(count):
            for _ in range(count):
                assert session.post(f"{address}/invocations", json={"inputs": [[1.5]]}, timeout=60).status_code == 400
            return whole.memory_full_info().uss / 2**20

        before = refused(500)
        assert refused(3000) - before < 20


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_that_is_in_use_is_one_line():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=rf"^127\.0\.0\.1, port {port}: .* in use; try --port {port + 1}$"):
            listening("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_one_line(host):
    with pytest.raises(OSError, match=rf"^{host}, port 8000: .*; try --host 127\.0\.0\.1$"):
        listening(host, 8000)


def test_answers_are_not_held_back_for_more_to_send():
    """asyncio turns off Nagle's algorithm for sockets of this protocol only."""
    with listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("model", ["models/none", pytest.param("params.yaml", marks=pytest.mark.slow)])
def test_what_is_no_model_ends_the_server_with_one_line(served, model):
    command = ["classifier", "serve", "--port", "0", "--model"]
    printed = served.run(*command, model, check=False, env={"PYTHONPATH": str(served.folder)})
    assert served.returncode == 1
    place = served.folder / model if model == "params.yaml" else model
    assert printed == f"serve: {place} is not a model directory: dvc repro trains a model into models/classifier\n"


@pytest.mark.slow
def test_a_new_champion_takes_over_without_a_lost_request_and_so_does_the_old_one_after_a_rollback(
    served, tmp_path, image
):
    project = served.copy(tmp_path / "project")
    environment = {"PYTHONPATH": str(project.folder)}
    (first,) = {run for (run,) in project.query("SELECT run_uuid FROM runs")}
    project.edit_params("min_accuracy_low: 0.95", "min_accuracy_low: 0.1")
    project.run("classifier", "promote", first, env=environment)
    project.edit_params("seed: 0\n  seeds", "seed: 1\n  seeds")
    project.repro(env=environment)
    (second,) = {run for (run,) in project.query("SELECT run_uuid FROM runs")} - {first}
    answers, stopped = [], threading.Event()
    with serving(project, "serve", "--watch", "models:/classifier@champion") as (_, address):

        def ask():
            with requests.Session() as session:
                while not stopped.is_set():
                    answer = session.post(f"{address}/predict", data=image, headers=IMAGE, timeout=20)
                    run = answer.json()["model"]["run_id"] if answer.status_code == 200 else ""
                    answers.append((answer.status_code, run, answer.headers.get("Model-Run-Id")))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for champion, command in (
                (first, []),
                (second, ["promote", second, "--limits-alone"]),
                (first, ["promote", "--rollback"]),
            ):
                if command:
                    project.run("classifier", *command, env=environment)
                until(lambda champion=champion: answers and answers[-1][1] == champion, 60)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert all(run == header for _, run, header in answers)
    order = [run for number, (_, run, _) in enumerate(answers) if number == 0 or run != answers[number - 1][1]]
    assert order[0] == order[-1] == first
    assert set(order) == {first, second}


@pytest.mark.slow
def test_the_model_of_a_directory_is_exported_once_and_kept(served, tmp_path):
    """Without the file in MLflow: as a project of an earlier version is."""
    project = served.copy(tmp_path / "project")
    for file in (project.folder / "mlartifacts").rglob("model.onnx"):
        file.unlink()
    command = [sys.executable, "-m", "classifier.serving.fetch", "models/classifier"]
    environment = project.variables | {"PYTHONPATH": str(project.folder)}
    said = [
        subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert said[0].stdout == said[1].stdout
    assert [each.stderr for each in said] == ["the model has no ONNX file yet: exporting it, once\n", ""]
    (kept,) = (project.folder / ".pipeline/onnx").iterdir()
    assert kept.read_bytes() == (served.folder / "model.onnx").read_bytes()
