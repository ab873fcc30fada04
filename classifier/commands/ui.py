"""Start the MLflow UI with this project's runs, on this machine only."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import Annotated

import typer

from classifier.recording.pages import note_ui
from classifier.recording.store import shown_uri, store_uri


def ui(port: Annotated[int, typer.Argument(help="port on 127.0.0.1", min=1, max=65535)] = 5000) -> None:
    """Start the MLflow UI with this project's runs.

    It listens on 127.0.0.1 only; Ctrl-C stops it.

    Example: classifier ui 5001
    """
    if (uri := store_uri()).startswith("http"):
        print(f"the runs are on a server: {shown_uri()}/{_page()}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(f"port {port}: {error.strerror}; use another port: make ui PORT={port % 65535 + 1}") from None
    print("starting MLflow, which takes about 10 s; Ctrl-C stops it", flush=True)
    page, address = _page(), f"http://127.0.0.1:{port}"
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # two processes instead of ten
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_REGISTRY_STORE_URI"] = uri  # otherwise MLflow logs that it uses the backend store's
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # may contain a password, and all users can see a process's arguments
    os.environ["PYTHONWARNINGS"] = "ignore"  # of MLflow's own code
    # MLflow's lifespan only cleans up after its assistant; Ctrl-C would end it with a traceback.
    options = "--log-level warning --lifespan off"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--uvicorn-opts", options]
    note_ui(address)
    print(f"{address}/{page}", flush=True)
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", str(port)])  # noqa: S606, fixed arguments


def _page() -> str:
    from mlflow.exceptions import MlflowException  # slow

    from classifier.tracking.connection import open_store
    from classifier.tracking.errors import reported
    from classifier.tracking.view import page, save_view

    with reported():
        experiment = open_store()
    with suppress(MlflowException):  # a user of a team's server who may only read
        save_view(experiment)
    return page(experiment)
