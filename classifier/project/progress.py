"""Progress of long work with the time left: a bar on a terminal, a line every EVERY_S seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

EVERY_S = 10  # seconds between lines


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(count)`; `total` is the number of things that will be counted."""
    if not sys.stderr.isatty():
        yield _Lines(what, total).advance
        return
    from rich.console import Console  # imported for terminals only: it takes 0.1 s
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.last = (time.monotonic(), 0)  # time of the last line, and what was done then

    def advance(self, count: int) -> None:
        self.done += count
        begin, before = self.last
        passed = time.monotonic() - begin
        if passed >= EVERY_S:
            self.last = (begin + passed, self.done)
            left = timedelta(seconds=round((self.total - self.done) * passed / (self.done - before)))
            print(f"{self.what}: {self.done:,} of {self.total:,}, {left} left", file=sys.stderr, flush=True)
