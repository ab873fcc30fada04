"""The commands' command line: typer reads the options, `classifier.cli` ends the process with one clear line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from classifier.cli import run


def run_command(function: Callable[..., None]) -> None:
    """What a command's module ends with: run it with the command line, or with one clear line to a non-zero status."""
    run(lambda arguments: call(function, arguments), own_help=True)


def call(function: Callable[..., None], arguments: list[str]) -> None:
    """Call a typed function with what typer reads from `arguments`; its docstring is the text of --help.

    ValueError says what is wrong with the command line.
    """
    application = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    application.command()(function)
    name = Path(function.__code__.co_filename).stem
    try:
        status = application(arguments, prog_name=f"lenet {name}", standalone_mode=False)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        raise ValueError(f"{message} Try lenet {name} --help") from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status:
        sys.exit(status)  # 130 after Ctrl-C, which typer makes of it
