"""Runs the main function of a stage or command: errors become one line and a non-zero exit status."""

from __future__ import annotations

import gc
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from classifier.errors import UserError, lacks_memory
from classifier.project.files import needing_space, sha256
from classifier.project.lineage import check_place, project_root
from classifier.project.ownership import owning
from classifier.project.processes import rank


def run(main: Callable[[list[str]], None], name: str) -> None:
    """Call `main` with the command line; errors that the user can fix become one line that starts with `name`.

    These are UserError, OSError and running out of memory. Other exceptions are bugs and keep their traceback.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwind, like SIGINT
    try:
        with needing_space(Path.cwd()):  # report a full disk with its free space, whatever wrote
            main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        lower = [f"lower {name}.batch_size"] if name in ("train", "evaluate") else []
        advice = [note for note in getattr(error, "__notes__", []) if note.startswith("set ")]
        remedies = ", or ".join([*(advice or lower), "close other programs"])
        print(f"{name}: out of memory: {out_of_memory(error)}: {remedies}", file=sys.stderr)
        sys.exit(1)
    finally:
        gc.freeze()  # spares the garbage collection of torch's and mlflow's objects at exit: 1 s


def collect_garbage() -> None:
    """Collect garbage from here on, except among the objects so far: for commands that may run for long.

    `classifier` disables it at its start. An exception and its traceback refer to each other, and to an image's bytes.
    """
    gc.freeze()
    gc.enable()


def out_of_memory(error: Exception) -> str:
    """Describe in one line what could not be allocated and what is free."""
    text = " ".join(str(error).split()).rpartition("DefaultCPUAllocator: ")[2]
    # Keep the requested size and the GPU's total and free memory; drop advice for programmers.
    text = re.split(r" (?:Error code|Including|Of the allocated|CUDA kernel errors|If reserved)\b", text)[0]
    if "GPU" in text:
        return text.rstrip(". ")
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return f"{text.rstrip('. ') or 'no memory is left'}; {free:.1f} GiB are free on this machine"


def run_stage(main: Callable[[list[str]], None], *, shared: bool = False) -> None:
    """Like `run`, but only one process at a time per stage and working folder. `--help` prints the stage's docstring.

    A stage outlives a killed `dvc repro`. When the next `dvc repro` starts it again, the new process waits for the old.
    Under torchrun, rank 0 runs the stage. The other ranks run `main` too if the stage is `shared`; otherwise they exit.
    """
    stage = Path(sys.argv[0]).stem
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((sys.modules[main.__module__].__doc__ or "").strip())
        return
    if rank():
        if shared:
            run(main, stage)
        return
    place = project_root() / ".pipeline/stages" / f"{stage}-{sha256(str(Path.cwd()).encode())[:16]}"

    def alone(arguments: list[str]) -> None:
        check_place(Path.cwd())
        with owning(place):
            main(arguments)

    run(alone, stage)


def paths(arguments: list[str], *names: str) -> list[Path]:
    """Parse the arguments as paths, one per name. Raises UserError, naming what is expected."""
    if len(arguments) != len(names):
        expected = " ".join(name.upper() for name in names) or "no arguments"
        raise UserError(f"expected {expected}, got {len(arguments)}: {' '.join(arguments)}")
    return [Path(argument) for argument in arguments]
