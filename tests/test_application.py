"""The commands' command line: options, --help, and one clear line when it is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from commands.application import call
from tests.samples import ROOT


def greet(name: str, loud: Annotated[bool, typer.Option("--loud", help="in capitals")] = False) -> None:
    """Say hello.

    Example: lenet greet you
    """
    print(f"hello {name}".upper() if loud else f"hello {name}")


def test_call_reads_arguments_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    call(greet, ["you", "--loud"])
    assert capsys.readouterr().out == "HELLO YOU\n"


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    call(greet, ["--help"])
    out = capsys.readouterr().out
    assert "Say hello." in out
    assert "Example: lenet greet you" in out
    assert "in capitals" in out


def test_a_wrong_command_line_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^Missing.*Try lenet test_application --help$"):
        call(greet, [])
    with pytest.raises(ValueError, match="No such option: --soft"):
        call(greet, ["you", "--soft"])


def lenet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "commands", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_lenet_lists_and_runs_the_commands() -> None:
    listed = lenet("--help")
    assert listed.returncode == 0
    assert "recipe, " in listed.stdout
    helped = lenet("recipe", "--help")
    assert helped.returncode == 0
    assert "Example: python -m commands.recipe mnist" in helped.stdout


COMMANDS = sorted(path.stem for path in (ROOT / "commands").glob("[a-z]*.py") if path.stem != "application")
WITHOUT_JSON = {"mend", "recipe", "ui"}  # as README has it


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example_and_json_where_readme_says_so(name: str) -> None:
    helped = lenet(name, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Example: " in helped.stdout
    assert ("--json" in helped.stdout) == (name not in WITHOUT_JSON)


def test_the_installed_lenet_runs_the_commands() -> None:
    script = Path(sys.executable).with_name("lenet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    helped = subprocess.run([script, "sync", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: lenet sync" in helped.stdout


def test_lenet_refuses_a_name_that_is_no_command() -> None:
    refused = lenet("recipes")
    assert refused.returncode == 1
    assert refused.stderr.startswith("lenet: 'recipes' is not a command; allowed are ")


def test_ctrl_c_ends_with_130() -> None:
    def interrupted() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        call(interrupted, [])
    assert getattr(end.value, "code", 130) == 130
