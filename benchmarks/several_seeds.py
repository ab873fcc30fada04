"""Several seeds with `train.seeds`, compared with as many trainings in sequence (CPU) or a single one (GPU)."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import PRETRAINED, RECIPE, Bench, Processes, Samples, Section
from benchmarks.process import Sample
from benchmarks.results import Bar, Result, Table, ratio, summary

COUNTS, LIMITS = {"cuda": 64}, {"cuda": 4}  # by device: number of seeds, limit of the ratio
COUNT, QUICK_COUNT, LIMIT = 16, 2, 0.75  # on a CPU


class SeedStages(Section):
    """Whole stages: one train stage with all seeds, compared with train stages of one seed each."""

    rounds = 1  # takes three minutes

    def __init__(self, bench: Bench) -> None:
        self.project, self.device = bench.project, bench.device
        self.count, self.limit = count_of(bench), LIMITS.get(bench.device, LIMIT)
        self.others = 1 if bench.device == "cuda" else self.count
        self.together = f"1 train stage, {self.count} seeds"
        self.other = "1 train stage, 1 seed" if self.others == 1 else f"{self.others} train stages in sequence"
        self.processes: Processes = {
            self.other: lambda: in_sequence([self.stage(seed, 1) for seed in range(self.others)]),
            self.together: lambda: self.stage(0, self.count),
        }

    def stage(self, seed: int, seeds: int) -> Sample:
        folder = "data/seeds"
        train = {"epochs": 1, "device": self.device, "seed": seed, "seeds": seeds}
        self.project.write_params(f"{folder}/params.yaml", RECIPE, train=train)
        return self.project.module(
            "stages.train",
            f"{folder}/params.yaml",
            "data/tutorial/normalized",
            PRETRAINED,
            f"{folder}/{seed}-{seeds}/model",
            f"{folder}/{seed}-{seeds}/reports",
        )

    def results(self, samples: Samples) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        return compared("Several seeds, whole stages", walls, self.other, self.together, self.limit)


class SeedLoops(Section):
    """The same, only from the data to the trained models: no start of processes, no recording, no writing of models."""

    def __init__(self, bench: Bench) -> None:
        self.count, self.limit = count_of(bench), LIMITS.get(bench.device, LIMIT)
        others = 1 if bench.device == "cuda" else self.count
        self.together = f"{self.count} seeds, loops only"
        self.other = "1 training, loop only" if others == 1 else f"{others} trainings in sequence in one process"
        train = partial(bench.contender, "several_seeds", "data/tutorial/params.yaml", "data/tutorial/normalized")
        self.processes: Processes = {
            self.other: partial(train, str(others), "in_sequence"),
            self.together: partial(train, str(self.count), "together"),
        }

    def results(self, samples: Samples) -> Result:
        loops = {name: [sample.loop_s for sample in samples[name]] for name in self.processes}
        return compared("Several seeds, loops only", loops, self.other, self.together, self.limit)


def count_of(bench: Bench) -> int:
    return COUNTS.get(bench.device, QUICK_COUNT if bench.quick else COUNT)


def in_sequence(samples: list[Sample]) -> Sample:
    """Add up the samples of processes that ran one after the other."""
    return Sample(
        sum(sample.wall_s for sample in samples),
        sum(sample.cpu_s for sample in samples),
        max(sample.peak_mib for sample in samples),
    )


def compared(title: str, seconds: dict[str, list[float]], other: str, together: str, limit: float) -> Result:
    rows = [[name, summary(found), f"{ratio(found, seconds[other]):.2f}"] for name, found in seconds.items()]
    bar = Bar(f"{together} / {other}", ratio(seconds[together], seconds[other]), limit)
    return Result([bar], [Table(title, ["one epoch", "s", f"/ {other}"], rows)])
