from __future__ import annotations

import os
import pty
import subprocess
import sys

from classifier.project import progress
from classifier.project.progress import counting
from tests.samples import ROOT

TERMINAL = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}


def test_a_line_now_and_then_says_how_much_time_is_left(capsys, monkeypatch):
    now = iter([0.0, 4.0, 10.0, 12.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with counting("decoding images", 6000) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "decoding images: 2,000 of 6,000, 0:00:20 left",
        "decoding images: 4,000 of 6,000, 0:00:20 left",
    ]


def test_a_terminal_shows_a_bar():
    script = (
        "from classifier.project.progress import counting\n"
        "with counting('decoding images', 4) as advance:\n    advance(3)\n"
    )
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=follower, check=True, env=TERMINAL)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert "decoding images" in shown
    assert "/4" in shown
