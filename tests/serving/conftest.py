"""A trained model with its ONNX file, and real servers of it on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import requests
from PIL import Image

from classifier.data.dataset import known_preprocessing
from classifier.serving.runtime import Model
from classifier.serving.server import Server, listening
from tests.projects import Project


@pytest.fixture(scope="session")
def model(served: Project) -> Model:
    model = Model.read(served.folder / "model.onnx")
    model.warm_up()
    return model


def png(image: np.ndarray) -> bytes:
    """The original file of an image `(1, 32, 32) uint8` of a known set: 28x28 pixels without the margin."""
    margin = known_preprocessing(1).margin
    file = BytesIO()
    Image.fromarray(image[0, margin:-margin, margin:-margin]).save(file, "png")
    return file.getvalue()


@contextmanager
def running(model: Path) -> Iterator[str]:
    """A server of an ONNX file in a thread, once it is ready; yields its address."""
    listener = listening("127.0.0.1", 0)
    server = Server(model, False, listener)
    thread = Thread(target=lambda: asyncio.run(server.run()))
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        until(lambda: requests.get(f"{address}/health/ready", timeout=5).status_code == 200)
        yield address
    finally:
        server.uvicorn.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(served: Project) -> Iterator[str]:
    """A server of the module's tests."""
    with running(served.folder / "model.onnx") as address:
        yield address


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until the condition holds; what cannot be connected to does not hold."""
    end = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except requests.ConnectionError:
            pass
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)
