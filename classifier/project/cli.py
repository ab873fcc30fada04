"""How a stage or a command ends: silently, or with one clear line and a non-zero exit status."""

from __future__ import annotations

import gc
import re
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

    Those are UserError, OSError and a lack of memory. Errors of the program itself keep their traceback.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwind, as SIGINT does
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if (lack := out_of_memory(error)) is None:
            raise
        key = f"lower {name}.batch_size, or " if name in ("train", "evaluate") else ""
        print(f"{name}: out of memory: {lack}: {key}close other programs", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()  # before it ends Python would look for cycles among all that torch and mlflow hold: 1 s


def out_of_memory(error: Exception) -> str | None:
    """What could not be allocated and what is free, in one line; None for any other error.

    PyTorch raises OutOfMemoryError for a GPU and RuntimeError for the CPU, NumPy and Python raise MemoryError.
    """
    text = " ".join(str(error).split())
    if re.search("can't allocate memory|out of memory|ALLOC_FAILED", text):
        text = text.rpartition("DefaultCPUAllocator: ")[2]
        # What remains: the size asked for, and the GPU's size and free memory. Advice for programmers goes.
        text = re.split(r" (?:Error code|Including|Of the allocated|CUDA kernel errors|If reserved)\b", text)[0]
    elif not isinstance(error, MemoryError):
        return None
    if "GPU" in text:
        return text.rstrip(". ")
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return f"{text.rstrip('. ') or 'no memory is left'}; {free:.1f} GiB are free on this machine"


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
