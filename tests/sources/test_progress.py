from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
from classifier.sources.progress import transfer_progress
with transfer_progress("images.gz") as advance:
    advance(500, 1000)
    advance(1000, 1000)
"""


def run(stderr: int) -> None:
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, stderr=stderr, timeout=60, check=True)


def test_a_bar_on_a_terminal():
    ours, theirs = pty.openpty()
    run(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "images.gz" in shown
    assert "1.0/1.0 kB" in shown


def test_nothing_elsewhere(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        run(log.fileno())
    assert (tmp_path / "log").read_bytes() == b""
