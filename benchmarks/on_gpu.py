"""Sections that need a GPU."""

from __future__ import annotations

from functools import partial
from statistics import mean

from benchmarks.bench import RECIPE, Bench, Processes, Samples, Section
from benchmarks.contenders.stopwatch import BFLOAT16, GPU_BATCH, GPU_EPOCHS
from benchmarks.networks import compared, of_networks
from benchmarks.results import Bar, Result, Table, ratio, summary

SEEDS = 200
IMAGES = 5120
GPU_NETWORKS = {"resnet18": 224, "mobilenet_v2": 128}  # images' size in pixels
GPU_WAYS = {
    "ours": {"compile": False, "data": "resident"},
    "ours, compiled": {"compile": True, "data": "resident"},
    "ours, compiled, streamed": {"compile": True, "data": "streamed"},
    "ours, compiled, not deterministic": {"compile": True, "data": "resident", "deterministic": False},
}
ACCURACY, DEVICE_S = 0.99, 0.05  # means over the seeds


class OnGpu(Section):
    """A section that runs nothing and has no results without a GPU."""

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {}
        if bench.device == "cuda":
            self.processes = self.prepare(bench)
        else:
            bench.say(f"no GPU: section {type(self).__name__} is skipped")

    def prepare(self, bench: Bench) -> Processes:
        raise NotImplementedError

    def results(self, samples: Samples) -> Result:
        return self.found(samples) if self.processes else Result((), ())

    def found(self, samples: Samples) -> Result:
        raise NotImplementedError


class Replayed(OnGpu):
    """Our loop compared with replays of its captured step; cost of determinism, gain of compiled kernels."""

    def prepare(self, bench: Bench) -> Processes:
        train = partial(bench.contender, "replayed", "data/tutorial/params.yaml", "data/tutorial/normalized")
        return {kind: partial(train, kind) for kind in ("deterministic", "free", "compiled")}

    def found(self, samples: Samples) -> Result:
        said = {kind: [sample.said for sample in samples[kind]] for kind in self.processes}
        problems = [figures["problem"] for figures in said["compiled"] if "problem" in figures]
        rows, loops, replays = [], {}, {}
        for kind, figures in said.items():
            if kind == "compiled" and problems:
                rows.append([f"compiled: {problems[0]}", *["-"] * 5])
                continue
            loops[kind], replays[kind] = ([each[name] for each in figures] for name in ("loop_s", "replay_s"))
            rows.append(
                [
                    kind,
                    summary(loops[kind], 4),
                    summary(replays[kind], 4),
                    f"{ratio(loops[kind], replays[kind]):.2f}",
                    f"{ratio(loops[kind], [each['loop_s'] for each in said['free']]):.2f}",
                    summary([each["compile_s"] for each in figures], 1) if kind == "compiled" else "-",
                ]
            )
        header = ["one epoch", "loop, s", "replays alone, s", "loop / replays", "loop / free", "compilation, s"]
        bar = Bar("our loop / replays of its step alone", ratio(loops["deterministic"], replays["deterministic"]), 1.1)
        return Result([bar], [Table("Replayed", header, rows)])


class GpuNetworks(OnGpu):
    """Five epochs of 5,120 images in bfloat16, batches of 256: our loop compared with the best hand-written one."""

    def prepare(self, bench: Bench) -> Processes:
        processes: Processes = {}
        for name, size in GPU_NETWORKS.items():
            contender = partial(bench.contender, "networks", "data/tutorial/normalized", name, str(size), str(IMAGES))
            for way in BFLOAT16:
                processes[f"GPU {name}: bare, {way}"] = partial(contender, way)
            for way, values in GPU_WAYS.items():
                path = f"data/networks/{'-'.join(map(str, values.values()))}.yaml"
                train = {"epochs": GPU_EPOCHS, "batch_size": GPU_BATCH, "device": "cuda", "precision": "bfloat16"}
                bench.project.write_params(path, RECIPE, train=train | values)
                processes[f"GPU {name}: {way}"] = partial(contender, path)
        return processes

    def found(self, samples: Samples) -> Result:
        ours = ("ours, compiled", "ours, compiled, streamed")
        own = {name.removeprefix("GPU "): samples[name] for name in self.processes}
        networks = GPU_NETWORKS.items()
        loops = [compared(name, f"{name} at {size}, bfloat16", BFLOAT16, ours, own) for name, size in networks]
        return of_networks("General networks on a GPU, bfloat16", "five epochs", loops)


class WarmSpeedrun(OnGpu):
    """Time to 99.0% on MNIST: 200 seeds in one warm process, measured with device events, and one whole cold stage."""

    def prepare(self, bench: Bench) -> Processes:
        bench.normalize("speedrun", "benchmarks/speedrun.yaml")
        data = ("data/speedrun/params.yaml", "data/speedrun/normalized")
        return {
            "warm speedrun": partial(bench.contender, "seeds", *data, str(SEEDS)),
            "cold speedrun": partial(bench.stage, "train", "speedrun"),
        }

    def found(self, samples: Samples) -> Result:
        said = [sample.said for sample in samples["warm speedrun"]]
        accuracies, seconds = ([value for each in said for value in each[name]] for name in ("accuracies", "seconds"))
        rows = [
            [
                str(len(said[0]["seconds"])),
                f"{mean(accuracies):.2%} ({min(accuracies):.2%} to {max(accuracies):.2%})",
                f"{mean(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f})",
                summary([sample.wall_s for sample in samples["cold speedrun"]]),
            ]
        ]
        header = ["seeds", "mean test accuracy", "mean device time, s", "whole train stage, cold, s"]
        bars = [
            Bar("warm speedrun: mean accuracy", mean(accuracies), ACCURACY, at_least=True),
            Bar("warm speedrun: mean device time, s", mean(seconds), DEVICE_S),
        ]
        return Result(bars, [Table("Time to 99.0%, warm", header, rows)])
