"""`classifier COMMAND ...` and `python -m classifier COMMAND ...` (`classifier.commands.application`)."""

from __future__ import annotations

import gc

from classifier.commands.application import call
from classifier.project.cli import run


def main() -> None:
    """Run a command. Errors that the user can fix are printed as one line."""
    gc.disable()  # most commands are short, and collecting garbage among mlflow's modules takes a third of a second
    run(call, name="classifier")


if __name__ == "__main__":
    main()
