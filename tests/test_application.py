"""The command line: `--help` describes every command, and a wrong line is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from classifier.commands.application import COMMANDS, call
from tests.samples import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "classifier", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_describes_every_command_and_so_does_no_argument():
    listed = run("--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] and len(line.split()) > 3 for line in listed.stdout.splitlines()), name
    assert run().stdout == listed.stdout


def test_every_module_of_the_folder_is_a_command():
    modules = {path.stem for path in (ROOT / "classifier/commands").glob("[a-z]*.py")}
    assert modules - {"application"} == set(COMMANDS)


WITHOUT_JSON = {"repair", "recipe", "ui"}  # as README has it


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example_and_json_where_readme_says_so(name, capsys):
    call([name, "--help"])
    helped = capsys.readouterr().out
    assert f"Usage: classifier {name}" in helped
    assert f"Example: classifier {name}" in helped
    assert ("--json" in helped) == (name not in WITHOUT_JSON)


def test_help_needs_neither_torch_nor_mlflow():
    program = (
        "import sys; from classifier.commands.application import call; call(['--help'])\n"
        "sys.exit(', '.join({'torch', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_version_names_what_decides_results(capsys):
    call(["--version"])
    assert "torch 2." in capsys.readouterr().out


def test_a_wrong_command_line_is_one_line():
    with pytest.raises(ValueError, match=r"^Missing argument .*Try classifier reproduce --help$"):
        call(["reproduce"])
    with pytest.raises(ValueError, match=r"No such option: --soft.*Try classifier sync --help$"):
        call(["sync", "--soft"])


def test_a_name_that_is_no_command_is_refused():
    refused = run("recipes")
    assert refused.returncode == 1
    assert refused.stderr == "classifier: No such command 'recipes'. Did you mean recipe? Try classifier --help\n"


def test_the_installed_script_runs_the_commands():
    script = Path(sys.executable).with_name("classifier")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    helped = subprocess.run([script, "sync", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: classifier sync" in helped.stdout


def test_ctrl_c_ends_with_130(monkeypatch):
    from classifier.commands import repair

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repair, "repair", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        call(["repair"])
    assert getattr(end.value, "code", 130) == 130
