"""Building blocks of the sections: prepared data, and processes that several sections measure."""

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
PRETRAINED = "data/pretrained"  # no network here has pretrained weights
STAGES = {  # stage -> its arguments; {0} is the data set's folder
    "download": ["{0}/params.yaml", "{0}/raw"],
    "normalize": ["{0}/params.yaml", "{0}/raw", "{0}/normalized", "{0}/data"],
    "train": ["{0}/params.yaml", "{0}/normalized", PRETRAINED, "{0}/model", "{0}/reports"],
    "evaluate": ["{0}/params.yaml", "{0}/normalized", "{0}/model", "{0}/reports", "{0}/evaluation"],
}
RECIPE = "recipes/tutorial-mnist.yaml"


class Section(Protocol):
    """A group of measurements. Prepares its data on creation, lists its processes and computes results from samples."""

    processes: Processes
    rounds: int = sys.maxsize  # maximum number of rounds

    def results(self, samples: Samples) -> Result: ...


class Bench:
    """A prepared project. `data/<name>/` contains a data set: params.yaml, raw, normalized and the stages' outputs."""

    def __init__(self, project: Project, device: str, quick: bool, say: Callable[[str], None]) -> None:
        self.project, self.device, self.quick, self.say = project, device, quick, say
        self.dataset = "digits" if quick else "mnist"
        self.normalize("tutorial", RECIPE, train={"epochs": 1})
        self.project.module("benchmarks.data", "idx", "data/tutorial/normalized", "data/torchvision")
        # An unmeasured training compiles the bytecode and creates the database.
        self.resize(500)
        self.ours("data/500")

    def normalize(self, name: str, recipe: str | None, **sections: dict[str, Any]) -> None:
        """Create data/<name>/normalized with the stages, from `recipe` or, if None, from params.yaml."""
        if recipe:
            sections["download"] = {"dataset": self.dataset}
        sections["train"] = {"device": self.device} | sections.get("train", {})
        self.project.write_params(f"data/{name}/params.yaml", recipe, **sections)
        for stage in ("download", "normalize"):
            self.stage(stage, name)

    def resize(self, images: int) -> None:
        """Create data/<images>, with that number of training images."""
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
        return self.shown("ours", params, data, PRETRAINED, model, "data/ours/reports")

    def unrecorded(self) -> Sample:
        data, model = (
            ("data/tutorial/params.yaml", "data/tutorial/normalized"),
            ("data/ours/model", "data/ours/reports"),
        )
        return self.shown("unrecorded", *data, PRETRAINED, *model)

    def shown(self, name: str, *arguments: str) -> Sample:
        """Run a contender on a terminal, because stages show progress only there."""
        return self.project.module(f"benchmarks.contenders.{name}", *arguments, terminal=True)

    def tutorial(self, workers: int = 0) -> Sample:
        return self.contender("tutorial", "data/torchvision", str(workers))

    def contender(self, name: str, *arguments: str) -> Sample:
        return self.project.module(f"benchmarks.contenders.{name}", self.device, *arguments)


def take_turns(sections: Iterable[Section], rounds: int, say: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Run every process once per round (A B C ... A B C ...), so that slow periods of the machine affect all alike."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    for number in range(1, rounds + 1):
        wanted = [section.processes for section in sections if number <= section.rounds]
        for name, process in {name: process for processes in wanted for name, process in processes.items()}.items():
            sample = process()
            samples[name].append(sample)
            loop = f", loop {sample.loop_s:.2f} s" if "loop_s" in sample.said else ""
            say(f"round {number}/{rounds}  {name}: {sample.wall_s:.2f} s{loop}")
    return samples
