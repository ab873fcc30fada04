"""Fixtures that several modules' tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.device import be_deterministic, set_precision
from tests.loopback import Answer, LoopbackServer

# In the background (nohup, &, cron) SIGINT is ignored, and processes inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
LONG = (  # modules, the longest first
    "test_pipeline.py",
    "test_kill.py",
    "test_reproduce.py",
    "test_sweep.py",
    "test_team_server.py",
    "test_whole_way.py",
    "test_benchmarks.py",
    "test_servers.py",
    "test_pairs.py",
    "test_remotes.py",
    "test_recording.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules come first, so that in the end no process is left alone with one."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def mnist_folder() -> Path:
    """The official MNIST files: the folder that DATA_MIRROR names, or ../shared/data/mnist beside the repository."""
    folder = ROOT / os.environ.get("DATA_MIRROR", "../shared/data/mnist")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in {folder}")
    return folder.resolve()


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """A GPU, deterministic as the train stage is."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    be_deterministic(device)
    yield device
    torch.use_deterministic_algorithms(False)
    set_precision("float32", device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one."""
    found: torch.device = request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")
    return found


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
def workspace(tmp_path: Path) -> Iterator[Path]:
    """An empty project with a store of its own, the current folder."""
    from tests.recorded import own_store

    with own_store(tmp_path):
        yield tmp_path
