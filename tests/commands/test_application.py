"""The command line: `--help` describes every command, and a wrong line is one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from classifier.commands.application import COMMANDS, call, in_project
from classifier.errors import UserError
from classifier.project.lineage import project_root, require_project
from classifier.repository.dvc import dvc_command
from tests.processes import run_without
from tests.samples import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "classifier", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_describes_every_command_and_so_does_no_argument():
    listed = run("--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w.+\n +\$ classifier {name}", listed.stdout, re.MULTILINE), name
    assert max(map(len, listed.stdout.splitlines())) <= 80
    assert run().stdout == listed.stdout


def test_every_module_of_the_folder_is_a_command():
    modules = {path.stem for path in (ROOT / "classifier/commands").glob("[a-z]*.py")}
    assert modules - {"application"} == set(COMMANDS)


WITHOUT_JSON = {"repair", "recipe", "serve", "ui"}  # as README has it


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example_and_json_where_readme_says_so(name, capsys):
    call([name, "--help"])
    helped = capsys.readouterr().out
    assert f"Usage: classifier {name}" in helped
    assert f"Example: classifier {name}" in helped
    assert "<list" not in helped
    assert ("--json" in helped) == (name not in WITHOUT_JSON)


def test_help_needs_neither_torch_nor_mlflow():
    help = "from classifier.commands.application import call; call(['--help'])"
    assert "reproduce" in run_without(("torch", "mlflow", "pandas"), help)


def test_version_names_what_decides_results(capsys):
    call(["--version"])
    assert "torch 2." in capsys.readouterr().out


def test_the_shell_completes_commands():
    variables = {"_CLASSIFIER_COMPLETE": "complete_bash", "COMP_WORDS": "classifier re", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "classifier"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.stdout.split() == [name for name in COMMANDS if name.startswith("re")]


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


ARGUMENTS = {"recipe": ["mnist"], "compare": ["123456", "abcdef"], "reproduce": ["123456"], "promote": ["123456"]}
ARGUMENTS |= {"sweep": ["train.seed=1"], "predict": ["a.png"], "export": ["model.onnx"]}


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The current folder, which no project holds."""
    for name in ("DVC_ROOT", "PIPELINE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_outside_a_project_a_command_says_so_and_creates_nothing(name, outside):
    with pytest.raises(
        UserError, match=f"{outside} is not in a project: neither it nor a folder above it has"
    ) as error:
        call([name, *ARGUMENTS.get(name, [])])
    assert "\n" not in str(error.value)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("marks", [[".dvc"], ["dvc.yaml", "params.yaml"]])
def test_from_a_subfolder_a_command_works_in_the_project_and_takes_paths_from_where_one_is(outside, monkeypatch, marks):
    for name in marks:
        (outside / name).mkdir()
    below = outside / "notebooks/old"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    found = []
    command = typer.Typer()
    command.command()(in_project(lambda: found.append((Path.cwd(), project_root()))))

    def write(page: Path, top: int = 1) -> None:
        found.append((Path.cwd(), page, top))

    typed = typer.Typer()
    typed.command()(in_project(write))
    for application, arguments in ((command, []), (typed, ["page.html", "--top", "3"])):
        monkeypatch.chdir(below)
        application(arguments, standalone_mode=False)
    assert found == [(outside, outside), (outside, below / "page.html", 3)]


def test_a_recipe_from_a_subfolder_is_put_into_the_projects_params(outside, monkeypatch):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, outside)
    shutil.copytree(ROOT / "recipes", outside / "recipes")
    monkeypatch.chdir(outside / "recipes")
    call(["recipe", "mnist"])
    assert "dataset: mnist" in (outside / "params.yaml").read_text()


def test_a_pipeline_below_the_folder_with_dot_dvc_is_refused_until_it_is_a_project_of_its_own(outside, monkeypatch):
    below = outside / "team/digits"
    below.mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(dvc_command("init", "-q"), check=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, below)
    monkeypatch.chdir(below)
    line = f"dvc.yaml must be in the folder that has .dvc: run dvc init --subdir in {below}"
    for name in COMMANDS:
        with pytest.raises(UserError, match=f"^{line}$"):
            call([name, *ARGUMENTS.get(name, [])])
    assert {path.name for path in below.iterdir()} == {"dvc.yaml", "params.yaml"}
    stage = [sys.executable, "-m", "stages.download", "params.yaml", "data/raw"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(outside)}
    refused = subprocess.run(stage, env=environment, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (1, f"download: {line}\n")
    subprocess.run(dvc_command("init", "-q", "--subdir"), check=True)
    (below / "notebooks").mkdir()
    monkeypatch.chdir(below / "notebooks")
    assert require_project() == project_root() == below
