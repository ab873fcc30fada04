"""Fixtures shared by several test modules."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from sqlalchemy import Engine, event

from classifier.device import be_deterministic, set_precision
from tests.loopback import Answer, LoopbackServer
from tests.projects import Project

# Background jobs (nohup, &, cron) start with SIGINT ignored, and child processes inherit that; tests send SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


@event.listens_for(Engine, "connect")
def commit_without_flushing(connection: object, _: object) -> None:
    """Do not flush SQLite: tests need not survive a power cut, and flushes take half the time of MLflow's commits."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def mnist_folder() -> Path:
    """The folder with the official MNIST files: DATA_MIRROR, or ../shared/data/mnist next to the repository."""
    folder = ROOT / os.environ.get("DATA_MIRROR", "../shared/data/mnist")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in {folder}")
    return folder.resolve()


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default project, reproduced and committed once per test run. Tests must not change it: `copy` it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "reproduced", shared / "reproduced.done"
    with FileLock(shared / "reproduced.lock"):
        if not done.exists():
            project = Project(folder)
            assert project.repro() == ["download", "normalize", "pretrained", "train", "evaluate"]
            project.commit("results")
            done.write_text(project.output)
    return Project.at(folder, done.read_text())


@pytest.fixture(scope="session")
def served(reproduced: Project) -> Project:
    """`reproduced` with `model.onnx`, which `classifier export` wrote. Tests must not change it: `copy` it."""
    folder = reproduced.folder.parent / "served"
    with FileLock(f"{folder}.lock"):
        if not (folder / "model.onnx").exists():
            project = reproduced.copy(folder)
            project.run("classifier", "export", "model.onnx", env={"PYTHONPATH": str(folder)})
    return Project.at(folder)


@pytest.fixture
def trained(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of `reproduced`."""
    return reproduced.copy(tmp_path)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A GPU with deterministic algorithms, as in the train stage."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    be_deterministic(device)
    yield device
    torch.use_deterministic_algorithms(False)
    set_precision("float32", device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU if there is one."""
    found: torch.device = request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoopbackServer]]:
    """`serve(answer)` starts a real server on loopback; `.address` is its base address, `.asked` the requests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    servers: list[LoopbackServer] = []

    def start(answer: Answer, **options: Any) -> LoopbackServer:
        servers.append(LoopbackServer(answer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """An empty project with its own store, as the current folder."""
    from tests.recorded import own_store

    with own_store(tmp_path):
        yield tmp_path
