"""Many seeds as `train.seeds` trains them: against as many trainings in turn on a CPU, against one on a GPU."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import RECIPE, Bench, Processes, Samples, Section
from benchmarks.process import Sample
from benchmarks.results import Bar, Result, Table, ratio, spread

COUNTS, LIMITS = {"cuda": 64}, {"cuda": 4}  # together / the other
COUNT, QUICK_COUNT, LIMIT = 16, 2, 0.75  # on a CPU


class ReplicaStages(Section):
    """What a person types: one train stage with all replicas, and train stages of one seed each."""

    rounds = 1  # which takes three minutes

    def __init__(self, bench: Bench) -> None:
        self.project, self.device = bench.project, bench.device
        self.count, self.limit = count_of(bench), LIMITS.get(bench.device, LIMIT)
        self.others = 1 if bench.device == "cuda" else self.count
        self.together = f"1 train stage, {self.count} replicas"
        self.other = "1 train stage, 1 seed" if self.others == 1 else f"{self.others} train stages in turn"
        self.processes: Processes = {
            self.other: lambda: in_turn([self.stage(seed, 1) for seed in range(self.others)]),
            self.together: lambda: self.stage(0, self.count),
        }

    def stage(self, seed: int, replicas: int) -> Sample:
        folder = "data/replicas"
        train = {"epochs": 1, "device": self.device, "seed": seed, "seeds": replicas}
        self.project.write_params(f"{folder}/params.yaml", RECIPE, train=train)
        return self.project.module(
            "stages.train",
            f"{folder}/params.yaml",
            "data/tutorial/normalized",
            f"{folder}/{seed}-{replicas}/model",
            f"{folder}/{seed}-{replicas}/reports",
        )

    def results(self, samples: Samples) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        return compared("Replicas, whole stages", walls, self.other, self.together, self.limit)


class ReplicaLoops(Section):
    """The same without the processes' starts, the record and the model's files: from the data to trained models."""

    def __init__(self, bench: Bench) -> None:
        self.count, self.limit = count_of(bench), LIMITS.get(bench.device, LIMIT)
        others = 1 if bench.device == "cuda" else self.count
        self.together = f"{self.count} replicas, loops alone"
        self.other = "1 training, loop alone" if others == 1 else f"{others} trainings in turn in one process"
        train = partial(bench.contender, "replicas", "data/tutorial/params.yaml", "data/tutorial/normalized")
        self.processes: Processes = {
            self.other: partial(train, str(others), "in_turn"),
            self.together: partial(train, str(self.count), "together"),
        }

    def results(self, samples: Samples) -> Result:
        loops = {name: [sample.loop_s for sample in samples[name]] for name in self.processes}
        return compared("Replicas, loops alone", loops, self.other, self.together, self.limit)


def count_of(bench: Bench) -> int:
    return COUNTS.get(bench.device, QUICK_COUNT if bench.quick else COUNT)


def in_turn(samples: list[Sample]) -> Sample:
    """Of processes that ran one after the other."""
    return Sample(
        sum(sample.wall_s for sample in samples),
        sum(sample.cpu_s for sample in samples),
        max(sample.peak_mib for sample in samples),
    )


def compared(title: str, seconds: dict[str, list[float]], other: str, together: str, limit: float) -> Result:
    rows = [[name, spread(found), f"{ratio(found, seconds[other]):.2f}"] for name, found in seconds.items()]
    bar = Bar(f"{together} / {other}", ratio(seconds[together], seconds[other]), limit)
    return Result([bar], [Table(title, ["one epoch", "s", f"/ {other}"], rows)])
