"""New interpreters, and processes as a test may meet them: ended meanwhile, zombies, another user's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping

import psutil

from tests.samples import ROOT

HEAVY = ("torch", "torchvision", "mlflow", "sklearn", "pandas", "scipy", "requests", "matplotlib")  # slow to import


def run_without(modules: Collection[str], code: str, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """Run `code` in a new interpreter, which must import none of these modules; returns what it printed."""
    check = f"import sys; loaded = {set(modules)} & set(sys.modules); assert not loaded, loaded"
    command = [sys.executable, "-c", f"{code}\n{check}", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def forks() -> list[psutil.Process]:
    """Living forks of this process, which have its command line; tests may have left helpers of other kinds."""
    own = psutil.Process()
    living = [each for each in own.children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in living if words_of(each) == own.cmdline()]


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; empty when it has none that can be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
