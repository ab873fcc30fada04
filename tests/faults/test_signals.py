"""SIGINT and SIGTERM end every stage at once; what was there before stays, and training goes on where it stood."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.loopback import LoopbackServer
from tests.project import OUTPUTS, Project

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
AT_ONCE_S = 15  # the patience of a stage that was stopped, 5 s, and as much again on a crowded machine
COMMANDS = {
    "download": "params.yaml data/raw",
    "normalize": "params.yaml data/raw data/normalized",
    "train": "params.yaml data/normalized models/classifier reports/train",
    "evaluate": "params.yaml data/normalized models/classifier reports/train reports/evaluate",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("stopped"))
    project.edit_params("epochs: 20", "epochs: 3")
    project.edit_params("checkpoint_every: 500", "checkpoint_every: 1")
    project.repro()
    project.expected = project.hashes()
    return project


def trickle(request):
    """A server that has the files, and takes for ever."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.2)


def begun(project: Project, stage: str, process: subprocess.Popen[bytes]) -> bool:
    """The stage is in the middle of its work."""
    folder = project.folder
    if stage == "train":
        return len(list(folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors"))) >= 2
    if stage == "evaluate":
        return any(folder.glob(".pipeline/journal/*-evaluate/events.jsonl"))
    owners = folder.glob(f".pipeline/stages/{stage}-*/lock")
    return any(f":{process.pid}:" in owner.read_text() for owner in owners)  # one that was stopped may leave its mark


def stopped(project: Project, stage: str, number: signal.Signals) -> tuple[int, float]:
    """Start the stage, signal it in the middle of its work, and return its status and the seconds it then took."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *COMMANDS[stage].split()],
        cwd=project.folder,
        env=project.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not begun(project, stage, process):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.001)
    process.send_signal(number)
    begin = time.monotonic()
    process.communicate(timeout=60)
    return process.returncode, time.monotonic() - begin


def end_of_runs(project: Project) -> list[str]:
    wait = time.monotonic() + 60
    while list(project.folder.glob(".pipeline/journal/*-*")):
        assert time.monotonic() < wait, "a journal is not delivered"
        time.sleep(0.1)
    return [status for (status,) in project.query("SELECT status FROM runs ORDER BY start_time")]


def test_every_stage_ends_at_once(project, attack):
    row = attack("SIGINT, SIGTERM in the middle of each stage")
    server = LoopbackServer(trickle)
    try:
        cases = [(stage, number) for stage in COMMANDS for number in STATUS]
        for stage, number in row.some(cases):
            with row.case(f"{number.name} in {stage}"):
                if stage == "download":
                    project.edit_params("dataset: digits", "dataset: mnist")
                    project.edit_params("mirror: null", f"mirror: {server.address}")
                before = len(end_of_runs(project))
                status, seconds = stopped(project, stage, number)
                assert status == STATUS[number]
                assert seconds < AT_ONCE_S
                if stage == "download":
                    project.git("checkout", "-q", "params.yaml")
                    project.edit_params("epochs: 20", "epochs: 3")
                    project.edit_params("checkpoint_every: 500", "checkpoint_every: 1")
                assert project.hashes() == project.expected  # the outputs that were there
                assert not [path for out in OUTPUTS for path in (project.folder / out).parent.glob(".*.new")]
                runs = end_of_runs(project)[before:]
                if stage == "train":
                    assert runs == ["KILLED"]
                    assert list(project.folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors"))
                    project.run(sys.executable, "-m", "stages.train", *COMMANDS["train"].split())
                    assert end_of_runs(project)[before:] == ["FINISHED"]  # the same run
                    assert project.hashes() == project.expected
                    assert not list(project.folder.glob(".pipeline/checkpoints/*-*"))
    finally:
        server.stop()
    row.verdict()
