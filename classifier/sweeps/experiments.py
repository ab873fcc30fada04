"""What a sweep tries, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from classifier.sweeps.grid import Point


@dataclass(frozen=True)
class Experiment:
    """`name` is the one that DVC shows."""

    name: str
    values: Point

    def __str__(self) -> str:
        return " ".join(f"{key}={shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Outcome:
    """What became of an experiment; what was killed is still to do."""

    status: Literal["finished", "failed", "killed"]
    run_id: str | None
    error: str | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # validation_accuracy, validation_loss, test_accuracy


class Plan(Protocol):
    """What is tried: a grid, or a search that learns from outcomes."""

    @property
    def names(self) -> Sequence[str]:
        """Of its experiments."""

    def next(self) -> Experiment | None: ...

    def tell(self, experiment: Experiment, outcome: Outcome) -> None: ...


class Grid:
    """Its points in their order."""

    def __init__(self, points: Sequence[Point], prefix: str) -> None:
        width = len(str(len(points)))
        self.experiments = [Experiment(f"{prefix}-{place:0{width}}", each) for place, each in enumerate(points, 1)]
        self.names = [experiment.name for experiment in self.experiments]
        self.left = iter(self.experiments)

    def next(self) -> Experiment | None:
        return next(self.left, None)

    def tell(self, experiment: Experiment, outcome: Outcome) -> None:
        """A grid does not learn."""


def trial_names(prefix: str, total: int) -> list[str]:
    """A search's experiments, by the numbers of its trials."""
    return [f"{prefix}-{number}" for number in range(total)]


def shown(value: Any) -> str:
    """For people: numbers to four digits."""
    return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
