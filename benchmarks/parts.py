"""Time and memory of batches in parts, each computed by one thread of a process, in portable and native arithmetic."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bench import PRETRAINED, RECIPE, Bench, Processes, Samples, Section
from benchmarks.process import Sample
from benchmarks.results import Bar, Result, Table, ratio, summary

WAYS = {  # name -> arithmetic, parts of a batch, processes that share them
    "native, one part, two threads": ("native", 1, 1),
    "native, two parts, two processes": ("native", 2, 2),
    "portable, two parts, two processes": ("portable", 2, 2),
    "portable, two parts, one process": ("portable", 2, 1),
}
THREADS, NATIVE, PORTABLE, ALONE = WAYS
MOBILE = "MobileNetV2 at 96 pixels, "
MOBILE_WAYS = {f"{MOBILE}{name}": WAYS[name] for name in (THREADS, NATIVE, PORTABLE)}
WIDE = "avx512f"  # processors with it lose more to portable arithmetic, which is AVX2


class Parts(Section):
    """One epoch of the tutorial's recipe on a CPU: variants of our stage, and the tutorial."""

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {name: partial(self.train, bench, name) for name in WAYS}
        self.processes |= {f"memory: {name}": partial(self.watch, bench, name) for name in (PORTABLE, ALONE)}
        self.processes["tutorial"] = bench.tutorial
        large, images = "data/large", 64 if bench.quick else 1280
        bench.project.module("benchmarks.data", "enlarge", "data/tutorial/normalized", large, str(images))
        for name, (arithmetic, parts, processes) in (WAYS | MOBILE_WAYS).items():
            train = {"epochs": 1, "device": "cpu", "arithmetic": arithmetic, "parts": parts, "processes": processes}
            if name in MOBILE_WAYS:
                train |= {"network": "mobilenet_v2", "batch_size": 64}
                alone = (path_of(name), large, "1", "in_sequence")
                self.processes[name] = partial(bench.contender, "several_seeds", *alone)
            bench.project.write_params(path_of(name), RECIPE, train=train)

    def train(self, bench: Bench, name: str) -> Sample:
        return bench.ours(params=path_of(name))

    def watch(self, bench: Bench, name: str) -> Sample:
        arguments = (path_of(name), "data/tutorial/normalized", PRETRAINED, "data/ours/model", "data/ours/reports")
        return bench.project.module("stages.train", *arguments, family="stages.train")

    def results(self, samples: Samples) -> Result:
        loops = {name: [sample.loop_s for sample in samples[name]] for name in (*WAYS, "tutorial", *MOBILE_WAYS)}
        memory = {name: [sample.family_mib for sample in samples[f"memory: {name}"]] for name in (PORTABLE, ALONE)}
        rows = []
        for name, found in loops.items():
            mobile = name in MOBILE_WAYS
            threads = loops[f"{MOBILE}{THREADS}"] if mobile else loops[THREADS]
            tutorial = "" if mobile else f"{ratio(found, loops['tutorial']):.3f}"
            peak = summary(memory[name], 0) if name in memory else ""
            rows.append([name, summary(found), f"{ratio(found, threads):.2f}", tutorial, peak])
        mobile_ratio = ratio(loops[f"{MOBILE}{NATIVE}"], loops[f"{MOBILE}{THREADS}"])
        wide = WIDE in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        bars = [
            Bar("our loop in parts on two processes / on two threads", ratio(loops[NATIVE], loops[THREADS]), 1.05),
            Bar(f"{MOBILE}in parts on two processes / on two threads", mobile_ratio, 0.9),
            Bar("portable / native, both in parts", ratio(loops[PORTABLE], loops[NATIVE]), 1.35 if wide else 1.1),
            Bar("portable loop / tutorial", ratio(loops[PORTABLE], loops["tutorial"]), 0.33 if wide else 0.27),
            Bar("native loop / tutorial", ratio(loops[NATIVE], loops["tutorial"]), 0.25),
            Bar("peak memory, two processes / one", ratio(memory[PORTABLE], memory[ALONE]), 1.5),
        ]
        header = ["one epoch", "loop, s", "/ two threads", "/ tutorial", "peak of all processes, MiB"]
        return Result(bars, [Table("Parts", header, rows)])


def path_of(name: str) -> str:
    return f"data/parts/{name.replace(', ', '-').replace(' ', '-')}.yaml"
