"""Errors that a person can mend are one line; signals unwind; our own mistakes keep their traceback."""

import os
import signal
import subprocess
import sys

import pytest

from classifier.project.cli import paths
from tests.samples import ROOT


def run(body):
    start = "import sys, time\nfrom classifier.errors import UserError\nfrom classifier.project.cli import run\n"
    script = f"{start}def main(arguments):\n    {body}\nrun(main, 'train')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("error", ["UserError('x: 3, allowed is 1')", "FileNotFoundError('x: 3, allowed is 1')"])
def test_one_clear_line(error):
    process = run(f"raise {error}")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "", "train: x: 3, allowed is 1\n")


@pytest.mark.parametrize("fault", ["assert False, 'broken'", "raise ValueError('of numpy')", "int('x')"])
def test_a_fault_of_the_program_keeps_its_traceback(fault):
    process = run(fault)
    assert "Traceback" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind_quietly(number, status):
    process = run("\n    try:\n        print('on', flush=True); time.sleep(60)\n    finally:\n        print('unwound')")
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (status, "unwound\n", "")


def test_paths_say_what_is_expected():
    assert [path.as_posix() for path in paths(["a", "b/c"], "data", "model")] == ["a", "b/c"]
    with pytest.raises(ValueError, match="expected DATA MODEL, got 1: a"):
        paths(["a"], "data", "model")


def test_help_of_a_stage_is_its_docstring():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "python -m stages.train params.yaml data/normalized models/classifier reports/train" in done.stdout
