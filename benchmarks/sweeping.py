"""Overhead of a sweep: `classifier sweep` compared with the same experiments run by `dvc exp run`."""

from __future__ import annotations

import shlex
from itertools import count

from benchmarks.bench import Bench, Processes, Samples, Section
from benchmarks.process import Sample
from benchmarks.project import Project
from benchmarks.results import Bar, Result, Table, ratio, summary

LIMIT = 1.1  # classifier sweep / the same dvc exp run calls
EXPERIMENTS = 5
CALLS, SWEEP = f"{EXPERIMENTS} times dvc exp run", f"classifier sweep, {EXPERIMENTS} experiments"


class Sweeping(Section):
    """Experiments with different seeds, run in sequence, on the digits with the values of params.yaml."""

    rounds = 3  # ten experiments each, which take two minutes

    def __init__(self, bench: Bench) -> None:
        self.project = Project(bench.project.folder / "data/sweeping", "", epochs=1 if bench.quick else None)
        self.project.run("dvc", "repro", "--quiet")
        self.seeds = count(1)  # always new seeds: DVC does not train cached ones again
        self.processes: Processes = {CALLS: self.calls, SWEEP: self.sweep}

    def calls(self) -> Sample:
        """Run in the workspace, which is fastest: `--temp` and `--queue` copy the project each time."""
        runs = [["dvc", "exp", "run", "--set-param", f"train.seed={seed}"] for seed in self._take()]
        sample = self.project.run("sh", "-c", " && ".join(map(shlex.join, runs)))
        self.project.run("git", "checkout", "--quiet", "--", ".")
        return sample

    def sweep(self) -> Sample:
        first, *_, last = self._take()
        return self.project.module("classifier", "sweep", f"train.seed={first}..{last}")

    def _take(self) -> list[int]:
        return [next(self.seeds) for _ in range(EXPERIMENTS)]

    def results(self, samples: Samples) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        value = ratio(walls[SWEEP], walls[CALLS])
        rows = [[f"`{name}`", summary(wall), f"{ratio(wall, walls[CALLS]):.3f}"] for name, wall in walls.items()]
        return Result([Bar(f"{SWEEP} / {CALLS}", value, LIMIT)], [Table("Sweep", ["process", "s", "/ calls"], rows)])
