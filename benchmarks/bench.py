"""What the sections are built from: prepared data, and the processes that more than one of them measures."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.process import Sample
from benchmarks.project import Project
from benchmarks.results import Result

Processes = dict[str, Callable[[], Sample]]
Samples = Mapping[str, Sequence[Sample]]
STAGES = {  # stage -> its arguments, {0} being the data set's folder
    "download": ["{0}/params.yaml", "{0}/raw"],
    "normalize": ["{0}/params.yaml", "{0}/raw", "{0}/normalized"],
    "train": ["{0}/params.yaml", "{0}/normalized", "{0}/model", "{0}/reports"],
    "evaluate": ["{0}/params.yaml", "{0}/normalized", "{0}/model", "{0}/reports", "{0}/evaluation"],
}
RECIPE = "recipes/tutorial-mnist.yaml"


class Section(Protocol):
    """Something to measure: prepares data when it is made, names its processes, and draws results from samples."""

    processes: Processes
    rounds: int = sys.maxsize  # that are enough, where more are asked for

    def results(self, samples: Samples) -> Result: ...


class Bench:
    """Data sets lie in `data/<name>/` of the project: params.yaml, raw, normalized, and what the stages make of it."""

    def __init__(self, project: Project, device: str, quick: bool, say: Callable[[str], None]) -> None:
        self.project, self.device, self.quick, self.say = project, device, quick, say
        self.dataset = "digits" if quick else "mnist"
        self.normalize("tutorial", RECIPE, train={"epochs": 1})
        self.project.module("benchmarks.data", "idx", "data/tutorial/normalized", "data/torchvision")
        # One training that nobody measures pays for bytecode and for the database's migrations.
        self.resize(500)
        self.ours("data/500")

    def normalize(self, name: str, recipe: str | None, **sections: dict[str, Any]) -> None:
        """data/<name>/normalized, by our own stages; without a recipe with the values of params.yaml."""
        if recipe:
            sections["download"] = {"dataset": self.dataset}
        sections["train"] = {"device": self.device} | sections.get("train", {})
        self.project.write_params(f"data/{name}/params.yaml", recipe, **sections)
        for stage in ("download", "normalize"):
            self.stage(stage, name)

    def resize(self, images: int) -> None:
        """data/<images>: that many of the training images."""
        self.project.module("benchmarks.data", "resize", "data/tutorial/normalized", f"data/{images}", str(images))

    def stage(self, stage: str, name: str) -> Sample:
        arguments = [argument.format(f"data/{name}") for argument in STAGES[stage]]
        return self.project.module("benchmarks.contenders.stage", stage, *arguments)

    def ours(
        self,
        data: str = "data/tutorial/normalized",
        params: str = "data/tutorial/params.yaml",
        model: str = "data/ours/model",
    ) -> Sample:
        return self.shown("ours", params, data, model, "data/ours/reports")

    def unrecorded(self) -> Sample:
        arguments = ("data/tutorial/params.yaml", "data/tutorial/normalized", "data/ours/model", "data/ours/reports")
        return self.shown("unrecorded", *arguments)

    def shown(self, name: str, *arguments: str) -> Sample:
        """On a terminal, for without one a stage shows no progress."""
        return self.project.module(f"benchmarks.contenders.{name}", *arguments, terminal=True)

    def tutorial(self, workers: int = 0) -> Sample:
        return self.contender("tutorial", "data/torchvision", str(workers))

    def contender(self, name: str, *arguments: str) -> Sample:
        return self.project.module(f"benchmarks.contenders.{name}", self.device, *arguments)


def take_turns(sections: Iterable[Section], rounds: int, say: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Every process once a round, A B C ... A B C ..., so that a slow minute of the machine meets them all."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    for number in range(1, rounds + 1):
        wanted = [section.processes for section in sections if number <= section.rounds]
        for name, process in {name: process for processes in wanted for name, process in processes.items()}.items():
            sample = process()
            samples[name].append(sample)
            loop = f", loop {sample.loop_s:.2f} s" if "loop_s" in sample.said else ""
            say(f"round {number}/{rounds}  {name}: {sample.wall_s:.2f} s{loop}")
    return samples
