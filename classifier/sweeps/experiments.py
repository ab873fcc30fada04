"""Experiments of a sweep, their outcomes, and the best configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from classifier.sweeps.grid import Point

if TYPE_CHECKING:
    import pandas as pd

    from classifier.runs.leaderboard import Board

SEED = "train.seed"


@dataclass(frozen=True)
class Experiment:
    """An experiment to run; `name` is its name in DVC."""

    name: str
    values: Point

    def __str__(self) -> str:
        return written(self.values)


@dataclass(frozen=True)
class Outcome:
    """The outcome of an experiment. A killed experiment runs again."""

    status: Literal["finished", "failed", "killed"]
    run_id: str | None
    error: str | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # validation_accuracy, validation_loss


class Plan(Protocol):
    """The experiments to run: a grid, or a search that uses earlier outcomes."""

    @property
    def names(self) -> Sequence[str]:
        """The names of its experiments."""

    def next(self) -> Experiment | None: ...

    def tell(self, experiment: Experiment, outcome: Outcome) -> None: ...


class Grid:
    """The points of a grid, in their order."""

    def __init__(self, points: Sequence[Point], prefix: str) -> None:
        width = len(str(len(points)))
        self.experiments = [Experiment(f"{prefix}-{place:0{width}}", each) for place, each in enumerate(points, 1)]
        self.names = [experiment.name for experiment in self.experiments]
        self.left = iter(self.experiments)

    def next(self) -> Experiment | None:
        return next(self.left, None)

    def tell(self, experiment: Experiment, outcome: Outcome) -> None:
        """Ignore the outcome, because a grid does not depend on it."""


def trial_names(prefix: str, total: int) -> list[str]:
    """The names of a search's experiments: prefix and number of the trial."""
    return [f"{prefix}-{number}" for number in range(total)]


@dataclass(frozen=True)
class Best:
    """The configuration with the best mean over its seeds, by a metric of the validation split."""

    values: Point  # without the seed
    metric: str
    mean: float
    low: float | None  # 95% interval of the mean (Student's t); None for a single seed
    high: float | None
    seeds: int
    experiment: str  # of its median seed, for `dvc exp apply`

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            interval = "one seed, no interval"
        else:
            interval = f"95% interval {self._shown(self.low)} to {self._shown(self.high)}, {self.seeds} seeds"
        values = f", {written(self.values)}" if self.values else ""
        return f"best {self.metric.replace('_', ' ')}: {self._shown(self.mean)} ({interval}){values}"

    def _shown(self, value: float) -> str:
        return f"{value:.2%}" if self.metric.endswith("accuracy") else shown(value)


def best_of(finished: Sequence[Experiment], board: Board, rows: pd.DataFrame, metric: str) -> Best | None:
    """Return the best configuration; `rows` are the results on the sweep's leaderboard.

    Ignores configurations with fewer seeds than others, because some failed or were killed: their means would not be
    comparable. Returns None without a validation split.
    """
    from classifier.training.summary import summarize

    column, accuracy = f"metrics.{metric.replace('_', '/', 1)}", metric.endswith("accuracy")
    if column not in rows:
        return None
    experiments, name = {experiment.name: experiment for experiment in finished}, "tags.dvc.exp.name"
    validation = rows.loc[rows[name].isin(experiments.keys()), column].dropna()
    found = []
    for entry in board.entries:
        runs = [result.run for result in entry.results]
        values = validation[validation.index.isin(runs)].sort_values()
        if values.empty:
            continue
        median = experiments[str(rows.loc[values.index[(len(values) - 1) // 2], name])]
        summary = summarize(list(values), 1 if accuracy else float("inf")) if len(values) > 1 else {}
        found.append(
            Best(
                values={key: value for key, value in median.values.items() if key != SEED},
                metric=metric,
                mean=float(values.mean()),
                low=summary.get("low"),
                high=summary.get("high"),
                seeds=len(values),
                experiment=median.name,
            )
        )
    most = max((best.seeds for best in found), default=0)
    whole = [best for best in found if best.seeds == most]
    return max(whole, key=lambda best: best.mean if accuracy else -best.mean, default=None)


def written(values: Point) -> str:
    """Format values as on the command line, numbers with four digits."""
    return " ".join(f"{key}={shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """Format a value, numbers with four digits."""
    return "null" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
