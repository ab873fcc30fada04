"""The tutorial's lines, a bar on terminals alone, and the copy for the record."""

import os
import pty
import subprocess
import sys

from classifier.training.console import Console
from classifier.training.history import Row
from tests.samples import ROOT, train_params

ROWS = [
    Row(2000, 1, 8000, 0.001, 2.182),
    Row(14000, 2, 56000, 0.001, 1.2819),
    Row(25000, 2, 10, 0.1, None, 1.2, 1.3, 0.55),
]


def show(lines=None):
    with Console(train_params(epochs=2), 12500, [] if lines is None else lines) as console:
        for row in ROWS:
            console.show(0, row)


def test_lines_are_those_of_the_tutorial(capsys):
    show()
    assert capsys.readouterr().out.splitlines() == [
        "[1,  2000] loss: 2.182",
        "[2,  1500] loss: 1.282",
        "[2] validation loss: 1.300 accuracy: 55.00%",
    ]


def test_all_lines_are_kept(capsys):
    lines = []
    show(lines)
    assert lines == capsys.readouterr().out.splitlines()


def test_lines_of_replicas_begin_with_the_seed(capsys):
    with Console(train_params(seeds=2), 12500, []) as console:
        console.show(7, ROWS[0])
    assert capsys.readouterr().out == "seed 7 [1,  2000] loss: 2.182\n"


def test_a_terminal_gets_a_bar_and_the_same_lines():
    leader, follower = pty.openpty()
    script = "from tests.training.test_console import show; show()"
    subprocess.run(
        [sys.executable, "-c", script], stdout=follower, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    os.close(follower)
    text = b""
    while chunk := _read(leader):
        text += chunk
    assert b"training" in text
    assert b"[1,  2000] loss: 2.182" in text


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says at the end of a closed terminal
        return b""
