"""SIGINT and SIGTERM end every stage at once; earlier outputs stay, and a rerun resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from classifier.project.files import sha256_of
from tests.loopback import LoopbackServer
from tests.projects import OUTPUTS, Project

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
AT_ONCE_S = 15  # a stopped stage waits up to 5 s; a busy machine needs more
COMMANDS = {
    "download": "params.yaml data/raw",
    "normalize": "params.yaml data/raw data/normalized reports/data",
    "train": "params.yaml data/normalized data/pretrained models/classifier reports/train",
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
    """A server that sends the files extremely slowly."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.2)


def begun(project: Project, stage: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the stage is in the middle of its work."""
    folder = project.folder
    if stage == "train":
        return len(list(folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors"))) >= 2
    if stage == "evaluate":
        return any(folder.glob(".pipeline/journal/*-evaluate/events.jsonl"))
    owners = folder.glob(f".pipeline/stages/{stage}-*/lock")
    return any(f":{process.pid}:" in owner.read_text() for owner in owners)  # a stopped stage may leave its mark


def stopped(project: Project, stage: str, number: signal.Signals) -> tuple[int, float]:
    """Start the stage, signal it in the middle of its work, and return its status and the seconds until it ended."""
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
    seconds = time.monotonic() - begin
    assert not living_of(process.pid), "a process of the stage still runs"
    return process.returncode, seconds


def living_of(session: int) -> list[psutil.Process]:
    """Processes of the stage's session; the recorder has its own session."""
    found = []
    for each in psutil.process_iter(["status"]):
        try:
            if os.getsid(each.pid) == session and each.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(each)
        except ProcessLookupError:
            continue
    return found


def end_of_runs(project: Project) -> list[str]:
    wait = time.monotonic() + 60
    while list(project.folder.glob(".pipeline/journal/*-*")):
        assert time.monotonic() < wait, "a journal is not delivered"
        time.sleep(0.1)
    return [status for (status,) in project.query("SELECT status FROM runs ORDER BY start_time")]


def run_stage(project: Project, stage: str) -> None:
    project.run(sys.executable, "-m", f"stages.{stage}", *COMMANDS[stage].split())


def of_model(project: Project) -> dict[str, str]:
    """SHA-256 of the outputs of train."""
    files = [path for out in ("models", "reports/train") for path in (project.folder / out).rglob("*")]
    return {str(path): sha256_of(path) for path in files if path.is_file()}


@pytest.mark.slow
def test_every_stage_ends_at_once(project, attack):
    row = attack("SIGINT, SIGTERM in the middle of each stage")
    server = LoopbackServer(trickle)
    edits = {  # of params.yaml, by case
        "download": [("dataset: digits", "dataset: mnist"), ("mirror: null", f"mirror: {server.address}")],
        "replicas": [("  seeds: 1", "  seeds: 2")],
    }
    try:
        cases = [(name, number) for name in (*COMMANDS, "replicas") for number in STATUS]
        for name, number in row.some(cases, least=2):
            stage = "train" if name == "replicas" else name
            with row.case(f"{number.name} in {name}"):
                own_params = (project.folder / "params.yaml").read_text()
                for old, new in edits.get(name, []):
                    project.edit_params(old, new)
                before = len(end_of_runs(project))
                status, seconds = stopped(project, stage, number)
                assert status == STATUS[number]
                assert seconds < AT_ONCE_S
                assert project.hashes() == project.expected  # the outputs that were there
                assert not [path for out in OUTPUTS for path in (project.folder / out).parent.glob(".*.new")]
                runs = end_of_runs(project)
                if stage == "train":
                    assert set(runs[before:]) == {"KILLED"}
                    assert list(project.folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors"))
                elif stage == "evaluate":
                    assert runs.count("KILLED") == 1  # one that awaited its evaluation, or its own
                else:
                    assert len(runs) == before
                if stage in ("train", "evaluate"):
                    run_stage(project, stage)
                    assert len(end_of_runs(project)) == (before + 3 if name == "replicas" else len(runs))
                    assert set(end_of_runs(project)[before:]) <= {"FINISHED"}  # the same run
                    assert end_of_runs(project)[-1] == "FINISHED"
                    assert not list(project.folder.glob(".pipeline/checkpoints/*-*"))
                if name == "replicas":
                    resumed = of_model(project)
                    run_stage(project, stage)  # anew
                    assert of_model(project) == resumed
                (project.folder / "params.yaml").write_text(own_params)
                project.run("dvc", "checkout", "--force")
                assert project.hashes() == project.expected
    finally:
        server.stop()
    row.verdict()
