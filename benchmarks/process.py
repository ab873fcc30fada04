"""Runs a process and measures its wall time, CPU time and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, Any

TERMINAL, SIZE = "xterm-256color", (40, 120)  # terminal type, lines and columns
MIB = 2**20 if sys.platform == "darwin" else 2**10  # in the units of ru_maxrss


@dataclass(frozen=True)
class Sample:
    """Measurements of one process: wall and CPU seconds, peak memory in MiB and its last output line, parsed as JSON.

    The peak is that of the largest process among it and its children. On Linux it includes the parent's size at the
    fork, so the harness stays small and imports neither numpy nor torch.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def loop_s(self) -> float:
        return float(self.said["loop_s"])

    @property
    def outside_s(self) -> float:
        """Seconds of the whole process minus its loop."""
        return self.wall_s - self.loop_s


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str], terminal: bool = False) -> Sample:
    """Run a command and measure it. With `terminal`, standard output is a terminal, so that stages show progress.

    Raises RuntimeError with the end of the output if the command fails.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        with screen(out) if terminal else nullcontext(out) as shown:
            start = time.monotonic()
            process = subprocess.Popen(  # noqa: S603
                command,
                cwd=folder,
                env={**environment, "TERM": TERMINAL} if terminal else environment,
                stdout=shown,
                stderr=errors,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
        if process.returncode:
            tail = "\n".join([*lines, *errors.read().decode(errors="replace").splitlines()][-20:])
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "started_at" in said:  # the monotonic clock is the same in both processes
        # The interpreter's start counts as imports; the time not covered by any part is its exit.
        said["imports"] = said.pop("started_at") - start + said.get("imports", 0)
        said["exit"] = wall_s - sum(value for name, value in said.items() if not name.endswith(("_s", "_mib")))
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MIB, said)


@contextmanager
def screen(out: IO[bytes]) -> Iterator[int]:
    """A pseudo-terminal to write to; its output is in `out` after the block."""
    reading, writing = os.openpty()
    termios.tcsetwinsize(writing, SIZE)

    def keep() -> None:
        with suppress(OSError):  # raised on Linux when the other end is closed
            while shown := os.read(reading, 1 << 16):
                out.write(shown)

    reader = Thread(target=keep)
    reader.start()
    try:
        yield writing
    finally:
        os.close(writing)
        reader.join()
        os.close(reading)
