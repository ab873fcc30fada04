"""The UI opens on this project's runs, for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import requests

from tests.samples import ROOT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
def test_it_serves_the_projects_store_on_loopback_only(tmp_path):
    (tmp_path / ".dvc").mkdir()
    port = free_port()
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "classifier", "ui", str(port)]
    with (tmp_path / "printed.txt").open("wb") as printed:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=variables, stdout=printed, stderr=printed, start_new_session=True
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                answer = requests.get(
                    f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=classifier", timeout=5
                )
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        assert answer.json()["experiment"]["artifact_location"] == (tmp_path / "mlartifacts").as_uri()
        assert "<title>MLflow" in requests.get(address, timeout=5).text
        assert "mlflow.db" not in " ".join(psutil.Process(server.pid).cmdline())  # an address may contain a password
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        listening = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        os.killpg(server.pid, signal.SIGINT)  # as Ctrl-C does
        server.wait(timeout=30)
        printed_lines = (tmp_path / "printed.txt").read_text().splitlines()
        assert [line for line in printed_lines if address in line]
        assert not [line for line in printed_lines if "Traceback" in line or "Warning" in line]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=30)
