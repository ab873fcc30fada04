"""The programs that check themselves as they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import ModuleType

import losses
import pytest
import tensors

from tests.samples import ROOT


@pytest.mark.parametrize(("program", "lessons"), [(tensors, 10), (losses, 5)])
def test_every_lesson_is_checked(program: ModuleType, lessons: int, capsys: pytest.CaptureFixture[str]) -> None:
    program.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == lessons
    assert all(line.endswith(": checked") for line in lines)


@pytest.mark.slow
def test_ways_to_load_give_the_same_batches() -> None:
    """The program compares them itself, and prints how fast each was."""
    command = [sys.executable, "examples/ways_to_load.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # what `pip install --editable .` does
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "the same 410 batches from each"
    assert all(re.fullmatch(r".+ {2,}[\d,]+ images/s", line) for line in lines[-6:-1])
