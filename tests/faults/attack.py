"""One attack: which of its cases are run, and how many of them ended as expected."""

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
TIMED_OUT = "from pytest-timeout"  # what its failure says
SEED = int(os.environ.get("FAULTS_SEED", "0"))


def cases(full: int) -> int:
    """How many of `full` cases are run at FAULTS percent; at least one."""
    return max(1, math.ceil(full * PERCENT / 100))


def limit(full_s: float) -> float:
    """Seconds that a test may take at FAULTS percent, if it may take `full_s` at 100: ten minutes at least."""
    return max(600, full_s * PERCENT / 100)


class Attack:
    """The cases of one row. A case that does not end as expected is remembered, and the next one is tried."""

    def __init__(self, row: str) -> None:
        self.row = row
        self.random = random.Random(f"{SEED} {row}")
        self.run = 0
        self.problems: list[str] = []

    def some(self, candidates: Sequence[Case], least: int = 1) -> list[Case]:
        """Those of `candidates` that are run, in their order: another choice with another seed."""
        chosen = self.random.sample(range(len(candidates)), max(least, cases(len(candidates))))
        return [candidates[index] for index in sorted(chosen)]

    @contextmanager
    def case(self, name: object) -> Iterator[None]:
        """What happens inside is one case; any exception is a case that did not end as expected.

        The end of the test's own time is one too, and ends the test: nothing limits the next case.
        """
        self.run += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # the second is what pytest.raises ends with
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}"
            self.problems.append(f"{name!s:.200}: {said:.2000} ({where.filename}:{where.lineno})")
            if TIMED_OUT in said:
                raise

    def verdict(self) -> None:
        """Fails when a case did not end as expected, naming each; at least one case must have been run."""
        assert self.run, f"{self.row}: no case was run"
        assert not self.problems, f"{self.row}, seed {SEED}: " + "\n".join(
            [f"{len(self.problems)} of {self.run} cases did not end as expected", *self.problems[:20]]
        )
