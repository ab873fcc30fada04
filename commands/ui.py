"""Open the MLflow UI on this project's runs, for this machine alone.

Example: python -m commands.ui 5001
"""

from __future__ import annotations

import os
import socket
import sys

from classifier import tracking
from classifier.cli import run
from classifier.store import shown_uri, store_uri


def main(arguments: list[str]) -> None:
    """Replace this process by `mlflow ui` on 127.0.0.1; Ctrl-C ends it."""
    port = (arguments or ["5000"])[0]
    if len(arguments) > 1 or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(
            f"{' '.join(arguments)!r} is not a port; allowed is 1 to 65535, as in python -m commands.ui 5001"
        )
    uri = store_uri()
    if uri.startswith("http"):
        print(f"the runs are on a server: {shown_uri()}")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            raise OSError(
                f"port {port}: {error.strerror}; take another, as in make ui PORT={int(port) % 65535 + 1}"
            ) from None
    experiment = tracking.open_store()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # two processes in place of ten
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    # The plain address opens on pages for language models.
    page = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    print(f"in a few seconds: http://127.0.0.1:{port}/{page}", flush=True)
    os.execv(command[0], [*command, "--host", "127.0.0.1", "--port", port])  # noqa: S606, arguments of our own


if __name__ == "__main__":
    run(main)
