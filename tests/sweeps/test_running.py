"""What a sweep may use, and a store that goes away while it runs; whole sweeps are in `test_sweep`."""

import os
import subprocess
import sys

import pytest

from classifier.sweeps import running as sweeping
from classifier.sweeps.running import cores, last_line, patiently
from tests.samples import ROOT


def test_cores_are_those_that_are_ours():
    code = "from classifier.sweeps.running import cores; print(cores())"
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {code}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "8", "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "1\n"


def test_omp_num_threads_limits_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1000000")
    assert cores() <= os.cpu_count()


def test_what_a_running_experiment_printed_last_is_shown(tmp_path):
    log = tmp_path / "log.txt"
    assert last_line(log) == ""
    log.write_bytes(b"")
    assert last_line(log) == ""
    log.write_bytes("é".encode() * 1500 + b"\n[1,    10] loss: 2.1\r\n \n")
    assert last_line(log) == "[1,    10] loss: 2.1"


def test_a_store_that_goes_away_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(sweeping, "STORE_RETRY_S", 0)
    answers = [OSError("MLflow: refused"), OSError("MLflow: refused"), "there"]

    def ask():
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    assert patiently(ask) == "there"
    assert capsys.readouterr().err == "MLflow: refused; trying again for 10 minutes\n"
    monkeypatch.setattr(sweeping, "STORE_PATIENCE_S", -1)
    answers.append(OSError("MLflow: refused"))
    with pytest.raises(OSError, match="refused"):
        patiently(ask)
