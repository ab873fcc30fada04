"""The search of a sweep with Optuna. The study is in a file, so that an interrupted search can continue.

A proposal depends only on the seed, its number and the results so far. With one experiment at a time, an interrupted
and continued search therefore runs the same trials as an uninterrupted one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from classifier.params import Params
from classifier.recording.store import sqlite_uri
from classifier.schema.ranges import Choices, Range
from classifier.sweeps.experiments import Experiment, Outcome, trial_names
from classifier.sweeps.grid import Point, canonical

STUDY = "sweep"  # its name in the file


class Search:
    """Proposes trials until there are `total`, including earlier ones; all of them have the values `fixed`."""

    def __init__(self, params: Params, fixed: Point, total: int, prefix: str, file: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.settings, self.fixed, self.names = params.sweep, fixed, trial_names(prefix, total)
        self.study = optuna.create_study(
            storage=sqlite_uri(file.absolute()),
            study_name=STUDY,
            direction="minimize" if params.sweep.metric.endswith("loss") else "maximize",
            load_if_exists=True,
        )
        self.ranges = distributions(params, fixed)
        self.numbers: dict[str, int] = {}  # trials' numbers by the experiment's name
        trials = self.study.get_trials(deepcopy=False)
        self.asked = len(trials)
        self.earlier = [trial for trial in trials if trial.number < total]

    def next(self) -> Experiment | None:
        """The next trial's experiment, earlier trials first; None if there are enough."""
        while self.earlier:
            trial = self.earlier.pop(0)
            if trial.params.keys() == self.ranges.keys():
                return self._experiment(trial.number, trial.params)
            if not trial.state.is_finished():  # interrupted before all its values were proposed
                self.study.tell(trial.number, state=TrialState.FAIL)
        if self.asked >= len(self.names):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # constant_liar, for parallel trials
            seed = int(np.random.SeedSequence([self.settings.seed, self.asked]).generate_state(1)[0])
            self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trial_now = self.study.ask(self.ranges)
        self.asked += 1
        return self._experiment(trial_now.number, trial_now.params)

    def tell(self, experiment: Experiment, outcome: Outcome) -> None:
        """Report a trial's outcome to Optuna; a killed trial stays open and runs again.

        A trial can be told only once: if a failed trial is run again, Optuna does not learn its result.
        """
        number = self.numbers[experiment.name]
        value = outcome.metrics.get(self.settings.metric, math.nan)
        if outcome.status == "killed" or self.study.trials[number].state.is_finished():
            return
        if outcome.status == "finished" and math.isfinite(value):
            self.study.tell(number, value)
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def _experiment(self, number: int, values: Point) -> Experiment:
        experiment = Experiment(self.names[number], {**self.fixed, **values})
        self.numbers[experiment.name] = number
        return experiment


def distributions(params: Params, fixed: Point) -> dict[str, BaseDistribution]:
    """Convert `sweep.search` to Optuna's distributions, without the fixed keys."""
    return {key: _distribution(key, values, params) for key, values in params.sweep.search.items() if key not in fixed}


def _distribution(key: str, values: Range | Choices, params: Params) -> BaseDistribution:
    if isinstance(values, Choices):
        return CategoricalDistribution(values.choices)
    ends: Mapping[str, float] = {end: canonical({key: getattr(values, end)}, params)[key] for end in ("low", "high")}
    if isinstance(ends["low"], int):
        return IntDistribution(int(ends["low"]), int(ends["high"]), log=values.log)
    return FloatDistribution(ends["low"], ends["high"], log=values.log)
