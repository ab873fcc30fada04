"""Measure serving and predicting with one model, alternating, in one process.

    python -m benchmarks.contenders.served COUNT

Run in a project with a trained model. COUNT is the number of requests and of files. Prints a line of JSON.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import mlflow
import numpy as np
import psutil
from PIL import Image
from safetensors.numpy import load_file

from classifier.serving.references import kept_onnx
from classifier.tracking.delivery import open_store

CLIENTS = 16
LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
MODEL = Path("models/classifier")
EMPTY = """
import sys, uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
app = FastAPI()
@app.post("/predict")
async def predict(): return JSONResponse({})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def server(path: str, *command: str) -> Iterator[tuple[int, psutil.Process, float]]:
    """Start a server on a free port, which replaces PORT in its command, and wait until `path` responds.

    Yields the port, the process and the seconds until the first response.
    """
    port = free_port()
    start = time.monotonic()
    arguments = [sys.executable, *(part.replace("PORT", str(port)) for part in command)]
    process = psutil.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                if ask(port, "GET", path)[0] < 500:
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
            time.sleep(0.01)
        yield port, process, time.monotonic() - start
    finally:
        for child in (*process.children(recursive=True), process):
            child.kill()
        process.wait()


def ask(port: int, way: str, path: str, body: bytes = b"", kind: str = "image/png") -> tuple[int, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(way, path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()


def request(path: str, body: bytes, kind: str) -> bytes:
    """Return an encoded request. The client only copies bytes, because it shares the cores with the server."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def receive(connection: socket.socket) -> None:
    """Receive one response, whose status must be 200."""
    received = b""
    while True:
        received += connection.recv(1 << 16)
        head, end, body = received.partition(b"\r\n\r\n")
        if end and len(body) == int(LENGTH.findall(head)[0]):
            assert head.startswith(b"HTTP/1.1 200 "), head
            return


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def one_by_one(port: int, requests: list[bytes]) -> Iterator[float]:
    """Yield the seconds of each request on one connection."""
    with connected(port) as connection:
        for each in requests:
            start = time.perf_counter()
            connection.sendall(each)
            receive(connection)
            yield time.perf_counter() - start


def at_once(port: int, requests: list[bytes]) -> tuple[float, list[float]]:
    """Return requests per second on CLIENTS connections, with one request each at a time, and the seconds of each."""
    waiting, sent, seconds = iter(requests), {}, []
    start = time.perf_counter()
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for _ in range(CLIENTS):
            connection = stack.enter_context(connected(port))
            selector.register(connection, selectors.EVENT_READ)
            sent[connection] = time.perf_counter()
            connection.sendall(next(waiting))
        while len(seconds) < len(requests):
            for key, _ in selector.select(60):
                receive(key.fileobj)
                now = time.perf_counter()
                seconds.append(now - sent[key.fileobj])
                if (following := next(waiting, None)) is not None:
                    sent[key.fileobj] = now
                    key.fileobj.sendall(following)
    return len(requests) / (time.perf_counter() - start), seconds


def bare(bodies: list[bytes]) -> Iterator[float]:
    """Yield the seconds of decoding and onnxruntime, without a server."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(kept_onnx(MODEL).read_bytes(), options)
    for body in bodies:
        start = time.perf_counter()
        image = np.asarray(Image.open(io.BytesIO(body)).convert("L"))
        session.run(None, {"images": np.pad(image, 2)[None, None]})
        yield time.perf_counter() - start


def hostile(port: int, count: int, good: bytes) -> dict[str, int]:
    """Send malformed and oversized requests. Returns the count of each status, 0 for a closed connection."""
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\0\0\0\0" + bytes(20)
    kinds: list[Callable[[], int]] = [
        lambda: ask(port, "POST", "/predict", good[: len(good) // 2])[0],
        lambda: ask(port, "POST", "/predict", huge)[0],
        lambda: ask(port, "POST", "/predict", good, "text/plain")[0],
        lambda: ask(port, "POST", "/predict", b"{" * 1000, "application/json")[0],
        lambda: ask(port, "POST", "/predict", b"--b\r\n" * 100, "multipart/form-data; boundary=b")[0],
        lambda: ask(port, "POST", "/invocations", b'{"inputs": [[1.5]]}', "application/json")[0],
        lambda: raw(port, b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n" + good, False),
        lambda: raw(port, b"GET / HTTP/1.1\r\nBroken\r\n\r\n", False),
        lambda: raw(port, b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n", True),
        lambda: raw(port, b"POST /pre", True),
    ]

    def tried(kind: Callable[[], int]) -> int:
        try:
            return kind()
        except (OSError, HTTPException):
            return 0

    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]  # they never complete their request
    for connection in slow:
        connection.sendall(b"POST /predict HTTP/1.1\r\nContent-Le")
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = list(pool.map(tried, islice(cycle(kinds), count)))
    for connection in slow:
        connection.close()
    return {str(status): statuses.count(status) for status in sorted(set(statuses))}


def raw(port: int, sent: bytes, half: bool) -> int:
    """Send bytes and close the connection; with `half`, close only the sending half and return the status, or 0."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        if not half:
            return 0
        connection.shutdown(socket.SHUT_WR)
        found = re.match(rb"HTTP/1.1 (\d+)", connection.recv(100))
        return int(found[1]) if found else 0


def predicting(files: Path) -> dict[str, float]:
    """Return the seconds of predicting the files in a folder and of only decoding them: medians of three passes."""
    import torch

    from classifier.serving.files import below, decoded, typed
    from classifier.serving.prediction import Predictor
    from classifier.serving.workers import cores

    predictor, named = Predictor(MODEL, torch.device("cpu")), list(below(typed(str(files))))
    seconds: dict[str, list[float]] = {"predict_s": [], "decode_s": []}
    for _ in range(3):
        start = time.perf_counter()
        assert sum(len(chunk.images) for chunk in decoded(named, predictor.meta.preprocessing, cores())) == len(named)
        middle = time.perf_counter()
        assert sum(1 for _ in predictor.answers(named)) == len(named)
        seconds["decode_s"].append(middle - start)
        seconds["predict_s"].append(time.perf_counter() - middle)
    return {name: median(values) for name, values in seconds.items()}


def main(count: int) -> None:
    images = load_file("data/normalized/test.safetensors")["images"]
    bodies = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[0, 2:-2, 2:-2]).save(file, "png")
        bodies.append(file.getvalue())
    many = list(islice(cycle(bodies), count))
    requests = [request("/predict", body, "image/png") for body in many]
    said: dict[str, object] = {}
    subprocess.run(  # noqa: S603, arguments of our own
        [sys.executable, "-m", "classifier.serving.fetch", str(MODEL)], check=True, stdout=subprocess.DEVNULL
    )
    serve = ("-m", "classifier", "serve", "--port", "PORT")
    with (
        server("/health/ready", *serve) as (ours, process, said["start_s"]),
        server("/", "-c", EMPTY, "PORT") as (empty, *_),
    ):
        # Alternating, because a processor is slower after a pause than in a continuous loop.
        turns = zip(one_by_one(ours, requests), one_by_one(empty, requests), bare(many), strict=True)
        for name, seconds in zip(("ours", "empty", "bare"), zip(*turns, strict=True), strict=True):
            said[f"{name}_ms"] = 1000 * median(seconds)
        said["rate"], seconds = at_once(ours, requests)
        said["p99_ms"] = 1000 * float(np.quantile(seconds, 0.99))
        hostile(ours, 200, bodies[0])
        said["before_ms"] = 1000 * median(one_by_one(ours, requests[:500]))
        said["before_mib"] = process.memory_info().rss / 2**20
        said["statuses"] = hostile(ours, count, bodies[0])
        said["after_mib"] = process.memory_info().rss / 2**20
        said["after_ms"] = 1000 * median(one_by_one(ours, requests[:500]))
    model = mlflow.search_logged_models([open_store()], output_format="list")[0]  # the newest, as in the workspace
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = (
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{model.model_id}",
        "--env-manager",
        "local",
        "-p",
        "PORT",
    )
    with server("/ping", *command) as (theirs, *_):
        texts = [json.dumps({"inputs": [base64.b64encode(body).decode()]}).encode() for body in many]
        invocations = [request("/invocations", text, "application/json") for text in texts[: max(160, count // 20)]]
        at_once(theirs, invocations[:32])
        said["mlflow_rate"], _ = at_once(theirs, invocations)
    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(many):
            (Path(folder) / f"{number}.png").write_bytes(body)
        said |= predicting(Path(folder))
        start = time.monotonic()
        command = ("-m", "classifier", "predict", folder, "--csv", f"{folder}.csv")
        subprocess.run([sys.executable, *command], check=True)  # noqa: S603
        said["command_s"] = time.monotonic() - start
        Path(f"{folder}.csv").unlink()
    print(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]))
