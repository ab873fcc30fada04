"""Open the MLflow UI on this project's runs, for this machine alone.

Example: python -m commands.ui --port 5001
"""

from __future__ import annotations

import os
import sys

import typer

from classifier import tracking
from classifier.store import store_uri


def main(port: int = typer.Option(5000, min=1, max=65535, help="Port on 127.0.0.1.")) -> None:
    """Open the MLflow UI on this project's runs; Ctrl-C ends it."""
    tracking.open_store()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri()]
    # One worker and no job runner: two processes in place of ten, for one person's eyes.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    print(f"http://127.0.0.1:{port}", flush=True)
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"])  # noqa: S606


if __name__ == "__main__":
    typer.run(main)
