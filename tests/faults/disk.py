"""A disk that fails, at every place where the pipeline writes; cases are forked from one warm process.

    python -m tests.faults.disk CASES    (JSON: [[site, fault], ...]; prints a line of JSON per case)

A case runs on its own small file system. The site writes version 1. The fault occurs while another process writes
version 2; that process must exit with one line and status 1 (or be killed), and version 1 must still be readable. Then
the site writes version 2 without a fault, and the files must equal those of a disk that never failed, without
temporary files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from classifier.project.cli import run
from tests.faults.kernel import CREATING, RENAMING, WRITING, ask, can_refuse, refuse, small_disk
from tests.faults.sites import SITES, Site

DISK = 16 << 20  # bytes
LATER = {"fsync": 3, "rename": 2}  # the call of the second file: flushes of files and of their folder alternate


def fill(folder: Path) -> None:
    """Fill the disk with an extra file, which is removed before the next start."""
    for size in (1 << 16, 1):
        with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)):
                pass


def shorten(folder: Path) -> None:
    """The next write beyond the largest file's size is written in part, and the rest is refused."""
    appended = folder / "out/events.jsonl"
    limit = appended.stat().st_size + 10 if appended.exists() and not (folder / "source").exists() else 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def full(folder: Path) -> None:
    """A full disk: `fill` has filled it, or the kernel reports ENOSPC if a small disk could not be mounted."""
    if not (folder / "filler").exists():
        refuse(*WRITING, error=errno.ENOSPC)


def refuse_later(call: str) -> None:
    """EIO for a single call, after a first file was written completely."""
    numbers = count(1)
    ask(lambda name, paths: errno.EIO if name.startswith(call) and next(numbers) == LATER[call] else 0)


FAULTS: dict[str, Callable[[Path], None]] = {
    "full disk": full,
    "short write": shorten,
    "write: EIO": lambda folder: refuse(*WRITING, error=errno.EIO),
    "flush: EIO": lambda folder: refuse("fsync", error=errno.EIO),
    "rename: EIO": lambda folder: refuse(*RENAMING, error=errno.EIO),
    "create: EACCES": lambda folder: refuse(*CREATING, error=errno.EACCES),
    "write: killed": lambda folder: refuse(*WRITING, error=None),
    "flush: killed": lambda folder: refuse("fsync", error=None),
    "rename: killed": lambda folder: refuse(*RENAMING, error=None),
    "later flush: EIO": lambda folder: refuse_later("fsync"),
    "later rename: EIO": lambda folder: refuse_later("rename"),
}


def all_cases() -> list[tuple[str, str]]:
    """Every site with every fault that applies to it on this machine."""
    found = []
    for name, site in SITES.items():
        for fault in FAULTS:
            reached = fault.split()[0].rstrip(":") not in site.without and (site.several or "later" not in fault)
            if reached and (site.cleans or "killed" not in fault) and (can_refuse() or fault == "short write"):
                found.append((name, fault))
    return found


def in_a_process(act: Callable[[], None]) -> tuple[int, str]:
    """Run `act` like a command in a child process; returns its exit status (negative: a signal) and standard error."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = 99
        try:
            run(lambda arguments: act(), "stage")
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def names(folder: Path) -> list[str]:
    """File names, without locks and without names that contain a time, a process id or a hash."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.name not in ("filler", "lock"))
    return sorted(re.sub(r"[0-9a-f]{16,}|\d+", "N", str(path)) for path in paths)


def check(name: str, fault: str, place: Path) -> None:
    """Run one case in this process, which has its own small disk. Raises AssertionError."""
    site = SITES[name]
    mounted = True
    try:
        small_disk(str(place), DISK)
    except OSError:
        mounted = False
    clean, folder = place / "clean", place / "folder"

    def write(folder: Path, version: int, fault: str | None = None) -> tuple[int, str]:
        os.environ["DVC_ROOT"] = str(folder)
        folder.mkdir(exist_ok=True)
        strike = (lambda: FAULTS[fault](folder)) if fault else (lambda: None)
        return in_a_process(lambda: site.write(folder, version, strike))

    for version in (1, 2):
        assert (ended := write(clean, version)) == (0, ""), f"version {version}: {ended}"
    assert (ended := write(folder, 1)) == (0, ""), f"version 1: {ended}"
    before = site.read(folder)
    if fault == "full disk" and mounted:
        fill(folder)
    status, said = write(folder, 2, fault)
    (folder / "filler").unlink(missing_ok=True)
    if "killed" in fault:
        assert status == -signal.SIGSYS, f"status {status}: {said}"
    else:
        assert status == 1, f"status {status}: {said}"
        assert said.count("\n") == 1, f"not one line: {said}"
        if fault == "full disk":
            assert re.search(r"/\S+ cannot be written: the disk is full \(.*\d bytes free\)", said), said
    assert site.appends or site.read(folder) == before, "version 1 is no longer what is read"
    assert (ended := write(folder, 2)) == (0, ""), f"the next start: {ended}"
    now, then = names(folder), names(clean)
    assert now == then, f"{sorted(set(now) ^ set(then))} is left over"
    assert site.appends or site.read(folder) == of_clean(site, clean, folder), "the next start wrote different content"


def of_clean(site: Site, clean: Path, folder: Path) -> Any:
    """Read the undisturbed folder under the other's name."""
    folder.rename(folder.with_name("done"))
    clean.rename(folder)
    found = site.read(folder)
    folder.rename(clean)
    folder.with_name("done").rename(folder)
    return found


def main(cases: list[tuple[str, str]]) -> None:
    sys.argv[0] = "stage"
    for name, fault in cases:
        with tempfile.TemporaryDirectory() as place:
            status, said = in_a_process(lambda: check(name, fault, Path(place)))  # noqa: B023
        print(json.dumps({"site": name, "fault": fault, "problem": said.strip()[-1500:] if status else ""}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
