"""The programs that check themselves as they run: each runs alone, and one that finds a mistake would not end well."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.samples import ROOT


def run(program: str) -> list[str]:
    """What it prints when a person starts it in the project's folder; warnings are errors."""
    command = [sys.executable, "-W", "error", f"examples/{program}.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # what `pip install --editable .` does
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("program", "lessons"), [("tensors", 10), ("losses", 5)])
def test_every_lesson_is_checked(program: str, lessons: int) -> None:
    lines = run(program)
    assert len(lines) == lessons
    assert all(line.endswith(": checked") for line in lines)


def test_ways_to_load_give_the_same_batches() -> None:
    """The program compares them itself, and says how fast each was."""
    lines = run("ways_to_load")
    assert lines[-1] == "the same 410 batches from each"
    assert all(re.fullmatch(r".+ {2,}[\d,]+ images/s", line) for line in lines[-6:-1])
