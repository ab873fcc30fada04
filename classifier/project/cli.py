"""How a stage or a command ends: silently, or with one clear line and a non-zero exit status."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from classifier.errors import UserError
from classifier.project.files import sha256
from classifier.project.lineage import project_root
from classifier.project.ownership import owning


def run(main: Callable[[list[str]], None], name: str) -> None:
    """Call `main` with the command line; an error that a person can cure is one line that begins with `name`.

    Errors of the program itself (anything but UserError and OSError) keep their traceback.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwind, as SIGINT does
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()  # before it ends Python would look for cycles among all that torch and mlflow hold: 1 s


def run_stage(main: Callable[[list[str]], None]) -> None:
    """As `run`, one process at a time per stage and working folder. `--help` prints the stage's docstring.

    A stage outlives a `dvc repro` that was killed, and the next one starts it again beside itself.
    """
    stage = Path(sys.argv[0]).stem
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    place = project_root() / ".pipeline/stages" / f"{stage}-{sha256(str(Path.cwd()).encode())[:16]}"

    def alone(arguments: list[str]) -> None:
        with owning(place):
            main(arguments)

    run(alone, stage)


def paths(arguments: list[str], *names: str) -> list[Path]:
    """The command line as paths, one for each name; UserError says what is expected."""
    if len(arguments) != len(names):
        expected = " ".join(name.upper() for name in names) or "no arguments"
        raise UserError(f"expected {expected}, got {len(arguments)}: {' '.join(arguments)}")
    return [Path(argument) for argument in arguments]
