"""Runs a process and measures its wall time, CPU time and peak memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
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
    family_mib: float = 0.0  # peak of the total memory of several processes, if measured

    @property
    def loop_s(self) -> float:
        return float(self.said["loop_s"])

    @property
    def outside_s(self) -> float:
        """Seconds of the whole process minus its loop."""
        return self.wall_s - self.loop_s


def measure(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], terminal: bool = False, family: str = ""
) -> Sample:
    """Run a command and measure it. With `terminal`, standard output is a terminal, so that stages show progress.

    With `family`, the total memory of its processes with this word in their command line is also measured, which slows
    them down.
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
            with watching(process.pid, family) if family else nullcontext([0.0]) as peaks:
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
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MIB, said, max(peaks))


@contextmanager
def watching(pid: int, word: str) -> Iterator[list[float]]:
    """Sample the MiB of a process and its children with this word ten times a second; a shared page counts once."""
    peaks, over = [0.0], Event()

    def watch() -> None:
        while not over.wait(0.1):
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with suppress(OSError):  # ended meanwhile
                pids = [str(pid), *children.read_text().split()]
                named = [each for each in pids if word in Path(f"/proc/{each}/cmdline").read_text()]
                rollups = (Path(f"/proc/{each}/smaps_rollup").read_text() for each in named)
                peaks.append(
                    sum(int(found) for text in rollups for found in re.findall(r"^Pss: +(\d+)", text, re.M)) / 2**10
                )

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


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
