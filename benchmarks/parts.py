"""A batch in parts, each computed by one thread of a process, in portable and in native arithmetic, and its memory."""

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
WIDE = "avx512f"  # processors with it lose more to portable arithmetic, which is AVX2


class Parts(Section):
    """One epoch of the tutorial's recipe on a CPU by our stage, against itself and against the tutorial."""

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {name: partial(self.train, bench, name) for name in WAYS}
        self.processes |= {f"memory: {name}": partial(self.watch, bench, name) for name in (PORTABLE, ALONE)}
        self.processes["tutorial"] = bench.tutorial
        for name, (arithmetic, parts, processes) in WAYS.items():
            train = {"epochs": 1, "device": "cpu", "arithmetic": arithmetic, "parts": parts, "processes": processes}
            bench.project.write_params(path_of(name), RECIPE, train=train)

    def train(self, bench: Bench, name: str) -> Sample:
        return bench.ours(params=path_of(name))

    def watch(self, bench: Bench, name: str) -> Sample:
        arguments = (path_of(name), "data/tutorial/normalized", PRETRAINED, "data/ours/model", "data/ours/reports")
        return bench.project.module("stages.train", *arguments, family="stages.train")

    def results(self, samples: Samples) -> Result:
        loops = {name: [sample.loop_s for sample in samples[name]] for name in (*WAYS, "tutorial")}
        memory = {name: [sample.family_mib for sample in samples[f"memory: {name}"]] for name in (PORTABLE, ALONE)}
        rows = [
            [
                name,
                summary(found),
                f"{ratio(found, loops[THREADS]):.2f}",
                f"{ratio(found, loops['tutorial']):.3f}",
                summary(memory[name], 0) if name in memory else "",
            ]
            for name, found in loops.items()
        ]
        wide = WIDE in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        bars = [
            Bar("our loop in parts on two processes / on two threads", ratio(loops[NATIVE], loops[THREADS]), 1.05),
            Bar("portable / native, both in parts", ratio(loops[PORTABLE], loops[NATIVE]), 1.35 if wide else 1.1),
            Bar("portable loop / tutorial", ratio(loops[PORTABLE], loops["tutorial"]), 0.33 if wide else 0.27),
            Bar("native loop / tutorial", ratio(loops[NATIVE], loops["tutorial"]), 0.25),
            Bar("peak memory, two processes / one", ratio(memory[PORTABLE], memory[ALONE]), 1.5),
        ]
        header = ["one epoch", "loop, s", "/ two threads", "/ tutorial", "peak of all processes, MiB"]
        return Result(bars, [Table("Parts", header, rows)])


def path_of(name: str) -> str:
    return f"data/parts/{name.replace(', ', '-').replace(' ', '-')}.yaml"
