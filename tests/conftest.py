"""Fixtures that several modules' tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import Answer, LoopbackServer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mnist_folder() -> Path:
    """The official MNIST files: the folder that DATA_MIRROR names, or ../shared/data/mnist beside the repository."""
    folder = ROOT / os.environ.get("DATA_MIRROR", "../shared/data/mnist")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in {folder}")
    return folder.resolve()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LoopbackServer]]:
    """`serve(answer)` starts a real server on loopback: `.address` is its base address, `.asked` what was asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    servers: list[LoopbackServer] = []

    def start(answer: Answer, **options: Any) -> LoopbackServer:
        servers.append(LoopbackServer(answer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project with a store of its own, the current folder; MLflow's globals are reset after the test."""
    from tests.recorded import forget_store

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    forget_store()
