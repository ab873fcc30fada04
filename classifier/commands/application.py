"""`classifier COMMAND ...`: a Typer application that imports the module of a command only when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperGroup

from classifier.errors import UserError
from classifier.project.lineage import require_project

COMMANDS = (  # in the order of --help
    "results",
    "ui",
    "recipe",
    "leaderboard",
    "compare",
    "sweep",
    "reproduce",
    "verify",
    "record",
    "sync",
    "gc",
    "promote",
    "predict",
    "export",
    "serve",
    "repair",
    "audit",
)
RUN_HELP = "a run: its name or the last word of its name, its id or a prefix of its id, latest, or @champion"
STYLE: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class Commands(TyperGroup):
    """Loads commands lazily: each is the function of its name in the module of its name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = typer.Typer(**STYLE, add_completion=False)
        command.command()(in_project(getattr(import_module(f"classifier.commands.{cmd_name}"), cmd_name)))
        found = typer.main.get_command(command)
        for parameter in found.params:
            if isinstance(parameter, TyperArgument):  # show name and help only, without the Python type
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        return found

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List each command with its summary and an example, both from its docstring."""
        size = max(map(len, COMMANDS)) + 2
        with formatter.section("Commands"):
            for name in COMMANDS:
                story = (getattr(import_module(f"classifier.commands.{name}"), name).__doc__ or "").strip().splitlines()
                example = next(line.strip().removeprefix("Example: ") for line in story if "Example: " in line)
                formatter.write(f"  {name:{size}}{story[0]}\n  {'':{size}}$ {example}\n")


def in_project(function: Callable[..., None]) -> Callable[..., None]:
    """Run a command in the project that contains the current folder. Paths are relative to the current folder."""

    @wraps(function)
    def run(**values: Any) -> None:
        folder = require_project()
        values = {name: value.absolute() if isinstance(value, Path) else value for name, value in values.items()}
        os.chdir(folder)
        function(**values)

    return run


application = typer.Typer(cls=Commands, **STYLE)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"classifier {version('classifier-pipeline')}, torch {version('torch')}, mlflow {version('mlflow')}")
        raise typer.Exit


@application.callback()
def classifier(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Train image classifiers with DVC and MLflow, and show, compare, reproduce and promote the results.

    `dvc repro` trains with the values in params.yaml. `classifier COMMAND --help` describes a command.

    To name a run, use its name or the last word of its name, its id or a prefix of its id, latest, or @champion.
    Commands work in every folder of the project; paths are relative to the current folder.

    `classifier --install-completion` installs the completion of commands and options in the shell.
    """


def call(arguments: list[str]) -> None:
    """Run the command in `arguments`, or print the help. Raises UserError if the command line is invalid."""
    arguments = arguments or ["--help"]
    try:
        status = application(arguments, prog_name="classifier", standalone_mode=False)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        if arguments[0] in COMMANDS:
            raise UserError(f"{message} Try classifier {arguments[0]} --help") from None
        close = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"{message}{hint} Try classifier --help") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status:
        sys.exit(status)  # 130 after Ctrl-C, set by Typer
