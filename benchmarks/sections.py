"""The sections. A process listed by several sections runs once per round for all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import count
from statistics import mean, median

from benchmarks.bench import RECIPE, STAGES, Bench, Processes, Samples, Section
from benchmarks.commands import Commands
from benchmarks.images import Images
from benchmarks.networks import Networks
from benchmarks.on_gpu import GpuNetworks, Replayed, WarmSpeedrun
from benchmarks.parts import Parts
from benchmarks.photos import Photos
from benchmarks.process import Sample
from benchmarks.results import Bar, Result, Table, line, ratio, summary
from benchmarks.serving import Serving
from benchmarks.several_seeds import SeedLoops, SeedStages
from benchmarks.sweeping import Sweeping

TUTORIAL_LIMIT = {"cuda": 0.01}  # our loop / the tutorial's
BARE = {"bare_nchw": "bare, NCHW", "bare_nhwc": "bare, channels-last"}  # the bare loop in both memory formats
LINEAR = 0.05  # maximum relative deviation from the fitted line


class Contenders(Section):
    """One epoch of the same network with the same recipe, by our stage and by other implementations."""

    def __init__(self, bench: Bench) -> None:
        self.limit = TUTORIAL_LIMIT.get(bench.device, 0.25)
        workers = best_workers(bench)
        self.labels = {
            "dataloader_workers": f"dataloader_workers ({workers})",
            **BARE,
            "bare_kept": "bare, channels-last, keeping freed memory like ours",
        }
        bare = partial(bench.contender, "bare", "data/tutorial/normalized")
        self.processes: Processes = {
            "tutorial": bench.tutorial,
            "dataloader_workers": partial(bench.tutorial, workers),
            "lightning": partial(bench.contender, "lightning", "data/torchvision"),
            "bare_nchw": partial(bare, "contiguous_format"),
            "bare_nhwc": partial(bare, "channels_last"),
            "bare_kept": partial(bare, "channels_last", "kept"),
            "ours": bench.ours,
        }
        if not find_spec("lightning"):
            bench.say("lightning is not installed, skipped: make bench installs it")
            del self.processes["lightning"]

    def results(self, samples: Samples) -> Result:
        loops = {name: loop_seconds(samples[name]) for name in self.processes}
        bare = min(BARE, key=lambda name: median(loops[name]))  # the best memory format
        rows = [
            [
                self.labels.get(name, name),
                summary(loops[name]),
                f"{ratio(loops[name], loops[bare]):.2f}",
                f"{ratio(loops[name], loops['tutorial']):.3f}",
                summary(wall_seconds(samples[name])),
                summary([sample.outside_s for sample in samples[name]]),
                f"{median(sample.peak_mib for sample in samples[name]):.0f}",
            ]
            for name in self.processes
        ]
        header = [
            "one epoch",
            "loop, s",
            "/ best bare",
            "/ tutorial",
            "whole process, s",
            "process - loop, s",
            "peak, MiB",
        ]
        bars = [
            Bar(f"our loop / {BARE[bare]} (the faster memory format)", ratio(loops["ours"], loops[bare]), 1.03),
            Bar("our loop / tutorial", ratio(loops["ours"], loops["tutorial"]), self.limit),
        ]
        return Result(bars, [Table("Contenders", header, rows)])


class Imports(Section):
    """Time of the train stage outside its loop, relative to the imports it needs."""

    def __init__(self, bench: Bench) -> None:
        self.statements = ("import torch", "import mlflow", "import torch, mlflow")
        self.processes: Processes = {name: partial(bench.project.python, "-c", name) for name in self.statements}
        self.processes["ours"] = bench.ours

    def results(self, samples: Samples) -> Result:
        outside = [sample.outside_s for sample in samples["ours"]]
        torch, mlflow, _ = (median(wall_seconds(samples[name])) for name in self.statements)
        rows = [[f"`{name}`", summary(wall_seconds(samples[name]))] for name in self.statements]
        rows.append(["train stage, process - loop", summary(outside)])
        waited = [sample.said["waiting"] for sample in samples["ours"]]
        rows.append(["of that, waiting for the recorder", summary(waited)])
        bar = Bar(
            "train stage outside its loop / (import torch + import mlflow)", median(outside) / (torch + mlflow), 2
        )
        return Result([bar], [Table("Imports", ["process", "s"], rows)])


COSTS = {
    "waited_s": "the loop waits for reports, progress and checkpoints",
    "threads_s": "CPU time of the threads that write checkpoints and draw progress",
    "recorder_s": "CPU time of the recorder's process",
}


class Recording(Section):
    """Overhead of MLflow, history, checkpoints and progress in the loop, estimated and measured.

    The estimate is the time the loop waits plus the CPU time of other threads and processes meanwhile. The measured
    ratio can be within the noise between two identical loops.
    """

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {"unrecorded": bench.unrecorded}

    def results(self, samples: Samples) -> Result:
        said = [sample.said for sample in samples["unrecorded"]]
        shares = [sum(figures[cost] for cost in COSTS) / figures["loop_s"] for figures in said]
        ratios = [figures["loop_s"] / figures["unrecorded_s"] for figures in said]  # one per process
        rows = [
            ["everything on", summary([figures["loop_s"] for figures in said])],
            *([words, summary([figures[cost] for figures in said], 3)] for cost, words in COSTS.items()),
            ["these three / everything on, the estimate", summary(shares, 3)],
            ["nothing on, mean of before and after", summary([figures["unrecorded_s"] for figures in said])],
            ["everything on / nothing on, timed", summary(ratios, 3)],
        ]
        bars = [
            Bar("recording's share of our loop, estimated: waiting + CPU time of others", median(shares), 0.02),
            Bar("our loop, everything on / nothing on, timed", median(ratios), 1.02),
        ]
        return Result(bars, [Table("Recording", ["one epoch", "loop, s"], rows)])


class Stages(Section):
    """Time of every stage's process, by part. `journal` and `waiting` are the parts for MLflow."""

    parts = ("imports", "reading", "work", "checkpoints", "journal", "waiting", "writing", "other", "exit")

    def __init__(self, bench: Bench) -> None:
        bench.normalize("digits", None)
        self.datasets = {"digits": "digits"} if bench.quick else {"tutorial": "mnist", "digits": "digits"}
        self.processes: Processes = {
            f"{label} {stage}": partial(bench.stage, stage, name)
            for name, label in self.datasets.items()
            for stage in STAGES
        }

    def results(self, samples: Samples) -> Result:
        rows = [
            [name, summary(wall_seconds(samples[name]))]
            + [f"{median(sample.said.get(part, 0) for sample in samples[name]):.2f}" for part in self.parts]
            for name in self.processes
        ]
        return Result((), [Table("Stages, seconds", ["stage", "whole process", *self.parts], rows)])


class Nothing(Section):
    """`dvc repro` with nothing to do, relative to the cheapest DVC commands in minimal repositories."""

    def __init__(self, bench: Bench) -> None:
        run, folder = bench.project.run, bench.project.folder
        run("dvc", "repro")
        for other in ("data/empty", "data/smallest"):
            run("git", "init", "-q", other)
            run("dvc", "init", "-q", folder=other)
            shutil.copy(folder / ".dvc/config", folder / other / ".dvc/config")  # the same settings everywhere
        run("dvc", "stage", "add", "--run", "-n", "only", "-o", "out", "echo > out", folder="data/smallest")
        self.processes: Processes = {
            "dvc repro": partial(run, "dvc", "repro"),
            "dvc status, empty": partial(run, "dvc", "status", folder="data/empty"),
            "dvc repro, smallest": partial(run, "dvc", "repro", folder="data/smallest"),
        }

    def results(self, samples: Samples) -> Result:
        repro, status, smallest = (wall_seconds(samples[name]) for name in self.processes)
        rows = [
            ["`dvc repro`, nothing to do", summary(repro)],
            ["`dvc status`, empty repository", summary(status)],
            ["`dvc repro`, nothing to do, one stage without dependencies", summary(smallest)],
        ]
        bar = Bar("dvc repro with nothing to do / dvc status in an empty repository", ratio(repro, status), 1.2)
        return Result([bar], [Table("Nothing to do", ["command", "s"], rows)])


class Growth(Section):
    """The train stage with more images, and with more epochs."""

    def __init__(self, bench: Bench) -> None:
        # The shortest training takes 0.8 s, well above the noise.
        self.factors, self.images = ((1, 2), 100) if bench.quick else ((1, 2, 4, 8), 15000)
        self.processes: Processes = {}
        self.bytes: dict[str, int] = {}
        for factor in self.factors:
            bench.resize(factor * self.images)
            data, params = f"data/{factor * self.images}", f"data/epochs-{factor}.yaml"
            train = {"epochs": factor, "device": bench.device}
            bench.project.write_params(params, RECIPE, train=train)
            self.bytes[f"images x{factor}"] = (bench.project.folder / data / "train.safetensors").stat().st_size
            self.processes[f"images x{factor}"] = partial(bench.ours, data)
            self.processes[f"epochs x{factor}"] = partial(bench.ours, f"data/{self.images}", params)
        self.same = {"epochs x1": "images x1"} | ({} if bench.quick else {"images x4": "ours"})  # all of MNIST's
        self.processes = {name: process for name, process in self.processes.items() if name not in self.same}
        if not bench.quick:
            self.processes["ours"] = bench.ours

    def results(self, samples: Samples) -> Result:
        samples = {**samples, **{name: samples[other] for name, other in self.same.items()}}
        rows, bars = [], []
        for what in ("images", "epochs"):
            names = [f"{what} x{factor}" for factor in self.factors]
            loops = [median(loop_seconds(samples[name])) for name in names]
            fitted = line(self.factors, loops)
            for name, factor, loop in zip(names, self.factors, loops, strict=True):
                on_line = fitted.constant + fitted.slope * factor
                whole = median(sample.peak_mib for sample in samples[name])
                rows.append(
                    [
                        name,
                        summary(loop_seconds(samples[name])),
                        f"{loop / on_line - 1:+.1%}",
                        f"{loop_peak(samples[name]):.0f}",
                        f"{whole:.0f}",
                    ]
                )
            rows.append([f"slope per {self.images} images", f"{fitted.slope:.3f}", "", "", ""])
            bars.append(Bar(f"growth with {what}: largest distance from a line", fitted.deviation, LINEAR))
        sizes = [self.bytes[f"images x{factor}"] / 2**20 for factor in self.factors]  # MiB
        peaks = [loop_peak(samples[f"images x{factor}"]) for factor in self.factors]
        memory = line(sizes, peaks)
        rows.append(["constant of memory", "", "", f"{memory.constant:.0f}", ""])
        bars.append(Bar("growth of memory: bytes per byte of data, to the loop's end", memory.slope, 1.2))
        header = [f"x1: {self.images} images, 1 epoch", "loop, s", "from the line", "peak to its end, MiB", "peak, MiB"]
        return Result(bars, [Table("Growth", header, rows)])


class Speedrun(Section):
    """Time to 99.0% test accuracy on MNIST with one recipe and a new seed each time. The test split is read last."""

    seeds_per_round = 2  # 10 in 5 rounds

    def __init__(self, bench: Bench) -> None:
        self.bench, self.seeds = bench, count()
        self.models: list[str] = []
        bench.normalize("speedrun", "benchmarks/speedrun.yaml")
        runs = {f"speedrun {letter}": self.train for letter in "abcdefgh"[: self.seeds_per_round]}
        self.processes: Processes = {"tutorial": bench.tutorial, **runs}

    def train(self) -> Sample:
        seed = next(self.seeds)
        params = f"data/speedrun/seed-{seed}.yaml"
        train = {"seed": seed, "device": self.bench.device}
        self.bench.project.write_params(params, "benchmarks/speedrun.yaml", train=train)
        self.models.append(f"data/speedrun/seed-{seed}")
        return self.bench.ours("data/speedrun/normalized", params, self.models[-1])

    def results(self, samples: Samples) -> Result:
        arguments = ["data/speedrun/normalized", *self.models]
        accuracies = self.bench.project.module("benchmarks.accuracy", *arguments).said["accuracies"]
        loops = [sample.loop_s for name in self.processes if name != "tutorial" for sample in samples[name]]
        tutorial = median(loop_seconds(samples["tutorial"]))
        rows = [
            [
                str(len(accuracies)),
                f"{mean(accuracies):.2%} ({min(accuracies):.2%} to {max(accuracies):.2%})",
                f"{mean(loops):.2f} ({min(loops):.2f} to {max(loops):.2f})",
                f"{mean(loops) / tutorial:.3f}",
            ]
        ]
        header = ["seeds", "mean test accuracy", "mean loop, s", "/ tutorial's one epoch"]
        bars = [
            Bar(f"speedrun: mean accuracy of {len(accuracies)} seeds", mean(accuracies), 0.99, at_least=True),
            Bar("speedrun: mean loop / tutorial's one epoch", mean(loops) / tutorial, 0.5),
        ]
        return Result(bars, [Table("Time to 99.0%", header, rows)])


SECTIONS: dict[str, type[Section]] = {
    "contenders": Contenders,
    "imports": Imports,
    "recording": Recording,
    "stages": Stages,
    "nothing": Nothing,
    "commands": Commands,
    "sweeping": Sweeping,
    "serving": Serving,
    "growth": Growth,
    "speedrun": Speedrun,
    "parts": Parts,
    "networks": Networks,
    "gpu_networks": GpuNetworks,
    "images": Images,
    "photos": Photos,
    "replica_stages": SeedStages,  # named as in benchmarks/results
    "replica_loops": SeedLoops,
    "replayed": Replayed,
    "warm_speedrun": WarmSpeedrun,
}


def best_workers(bench: Bench) -> int:
    """The fastest number of DataLoader workers among 1, 2, 4 ... up to the number of cores."""
    counts = [workers for workers in (1, 2, 4, 8, 16) if workers <= max(2, os.cpu_count() or 1)]
    loops = {workers: bench.tutorial(workers).loop_s for workers in counts}
    bench.say("DataLoader workers: " + ", ".join(f"{workers}: {loop:.2f} s" for workers, loop in loops.items()))
    return min(loops, key=lambda workers: loops[workers])


def loop_seconds(samples: Sequence[Sample]) -> list[float]:
    return [sample.loop_s for sample in samples]


def wall_seconds(samples: Sequence[Sample]) -> list[float]:
    return [sample.wall_s for sample in samples]


def loop_peak(samples: Sequence[Sample]) -> float:
    return median(sample.said["loop_peak_mib"] for sample in samples)
