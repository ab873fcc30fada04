"""A train stage in two processes that is killed, hung or stopped: it ends cleanly and resumes to the same bytes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from classifier.arithmetic import CAPS
from classifier.project.files import sha256_of
from tests.processes import words_of
from tests.samples import ROOT, write_digits

STAGE = [sys.executable, "-m", "stages.train", "params.yaml", "data/normalized", "data/pretrained", "model", "report"]


@pytest.fixture
def project(workspace):
    """Some seconds of training, as params.yaml has it, but for a checkpoint after every tenth step."""
    write_digits(workspace / "data/normalized", train=600)
    text = (ROOT / "params.yaml").read_text()
    for old, new in (("checkpoint_every: 500", "checkpoint_every: 10"), ("processes: auto", "processes: 2")):
        assert old in text
        text = text.replace(old, new)
    (workspace / "params.yaml").write_text(text)
    return workspace


def start(**environment):
    """In a process group of its own, as a terminal's job is, and without the caps that the tests have chosen."""
    free = {name: value for name, value in os.environ.items() if name not in CAPS}
    variables = {**free, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(STAGE, env=variables, stderr=subprocess.PIPE, text=True, start_new_session=True)


def other_process(stage, project):
    """The process that shares the parts, once there is a checkpoint."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        forked = [each for each in psutil.Process(stage.pid).children() if "stages.train" in words_of(each)]
        if forked and list(project.glob(".pipeline/checkpoints/*/seed-0/*.safetensors")):
            return forked[0]
        time.sleep(0.01)
    raise AssertionError("no checkpoint")


def outputs(project):
    return {
        path.relative_to(project).as_posix(): sha256_of(path)
        for folder in ("model", "report")
        for path in sorted((project / folder).rglob("*"))
        if path.is_file()
    }


def wait_for_end(process):
    end = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_stage_of_which_a_process_is_killed_or_that_is_stopped_resumes_to_the_same_bytes(project):
    with start(OMP_NUM_THREADS="1") as stage:
        stage.communicate()
    assert stage.returncode == 0
    whole = outputs(project)
    assert "model/weights.safetensors" in whole

    with start() as stage:
        other_process(stage, project).kill()
        said = stage.communicate()[1]
    assert stage.returncode == 1
    assert said.splitlines()[-1] == (
        "train: a training process exited without reporting (exit status -9; -9: killed, or out of memory); "
        "run again: training resumes from its last checkpoint"
    )

    with start() as stage:
        other = other_process(stage, project)
        os.killpg(stage.pid, signal.SIGINT)
        stage.communicate()
    assert stage.returncode == 130
    wait_for_end(other)

    with start() as stage:
        other = other_process(stage, project)
        stage.kill()
        stage.communicate()
    wait_for_end(other)

    assert list(project.glob(".pipeline/checkpoints/*/seed-0/*.safetensors"))
    with start() as stage:
        stage.communicate()
    assert stage.returncode == 0
    assert outputs(project) == whole
    assert not list(project.glob(".pipeline/checkpoints/*"))
