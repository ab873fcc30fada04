"""An attack: selects the cases to run and counts those that ended as expected."""

from __future__ import annotations

import math
import os
import random
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pytest

Case = TypeVar("Case")

PERCENT = float(os.environ.get("FAULTS", "10"))
TIMED_OUT = "from pytest-timeout"  # part of its message
SEED = int(os.environ.get("FAULTS_SEED", "0"))


def cases(full: int) -> int:
    """Number of cases to run, FAULTS percent of `full`, at least one."""
    return max(1, math.ceil(full * PERCENT / 100))


def limit(full_s: float) -> float:
    """Time limit of a test in seconds: FAULTS percent of `full_s`, at least ten minutes."""
    return max(600, full_s * PERCENT / 100)


class Attack:
    """The cases of one row. A failed case is recorded, and the next one runs."""

    def __init__(self, row: str) -> None:
        self.row = row
        self.random = random.Random(f"{SEED} {row}")
        self.run = 0
        self.problems: list[str] = []

    def some(self, candidates: Sequence[Case], least: int = 1) -> list[Case]:
        """Select the candidates to run, in order; the selection depends on the seed."""
        chosen = self.random.sample(range(len(candidates)), max(least, cases(len(candidates))))
        return [candidates[index] for index in sorted(chosen)]

    @contextmanager
    def case(self, name: object) -> Iterator[None]:
        """Run one case in the block; any exception is a failed case.

        The end of the test's own time is one too, and ends the test: nothing limits the next case.
        """
        self.run += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # pytest.raises fails with the latter
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}"
            self.problems.append(f"{name!s:.200}: {said:.2000} ({where.filename}:{where.lineno})")
            if TIMED_OUT in said:
                raise

    def verdict(self) -> None:
        """Fail, naming each failed case, if there is one, or if no case was run."""
        assert self.run, f"{self.row}: no case was run"
        assert not self.problems, f"{self.row}, seed {SEED}: " + "\n".join(
            [f"{len(self.problems)} of {self.run} cases did not end as expected", *self.problems[:20]]
        )
