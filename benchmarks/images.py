"""A folder of 60,000 JPEG files: time of the stages that read it relative to decoding alone, their memory, DVC's time.

Also the train stage up to the end of its first step, on arrays of random pixels.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bench import PRETRAINED, STAGES, Bench, Processes, Samples, Section
from benchmarks.process import Sample
from benchmarks.project import ROOT, Project
from benchmarks.results import Bar, Result, Table, ratio, summary

ARCHIVE = ROOT / "../shared/data/cifar10/cifar10-jpeg-folder.zip"  # CIFAR-10 as JPEG files
SIZE = 32  # pixels
COPIES = 4  # of every file, in the larger folder
WHOLE, LARGE = "download and normalize", "download and normalize, four times the files"
ALONE = "decoding and resizing alone, all cores"
SMALL, BIG = "start of training, 60 MiB of images", "start of training, 2 GiB of images"
STARTS = {SMALL: 60 << 20, BIG: 2 << 30}  # bytes of images
REPRO, STATUS = "dvc repro, nothing to do", "dvc status of the folder alone"


class Images(Section):
    """Has no processes if the archive is missing. `--quick` uses one file in a hundred."""

    rounds = 3

    def __init__(self, bench: Bench) -> None:
        self.bench, self.processes = bench, {}
        if not ARCHIVE.is_file():
            bench.say(f"{ARCHIVE} not found: section images is skipped")
            return
        self.folder = bench.project.folder / "data/images"
        photos, large = self.folder / "photos", self.folder / "large"
        self.count = unpack(ARCHIVE, photos, every=100 if bench.quick else 1)
        for copy in range(COPIES):
            link(photos, large, f"{copy}-")
        for name in ("photos", "large"):
            self.write(bench.project, f"data/images/{name}-outputs/params.yaml", self.folder / name)
        project = Project(self.folder / "project", "")
        self.write(project, "params.yaml", photos)
        project.run("dvc", "repro")
        added = self.folder / "added"
        link(photos, added / "photos", "")
        for command in (("git", "init", "-q"), ("dvc", "init", "-q"), ("dvc", "add", "-q", "photos")):
            bench.project.run(*command, folder=str(added))
        self.processes: Processes = {
            WHOLE: partial(self.stages, "photos"),
            LARGE: partial(self.stages, "large"),
            ALONE: partial(bench.project.module, "benchmarks.contenders.decoding", str(photos), str(SIZE)),
            REPRO: partial(project.run, "dvc", "repro"),
            STATUS: partial(bench.project.run, "dvc", "status", folder=str(added)),
            **{name: self.start(size // 100 if bench.quick else size) for name, size in STARTS.items()},
        }

    def start(self, size: int) -> Callable[[], Sample]:
        """Return the train stage up to its first step, in a separate project whose images take `size` bytes."""
        images = size // (3 * SIZE**2)
        project, source = Project(self.folder / f"start-{images}", ""), self.bench.project.folder
        fill = f"python -m benchmarks.data fill {source}/data/tutorial/normalized data/normalized {images}"
        stages = {"normalize": {"cmd": fill, "outs": ["data/normalized"]}}
        (project.folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
        project.run("dvc", "repro")
        arguments = ("params.yaml", "data/normalized", PRETRAINED, "data/model", "data/reports")
        return partial(project.module, "benchmarks.contenders.start", *arguments)

    def write(self, project: Project, path: str, photos: Path) -> None:
        sections = {"download": {"dataset": "folder", "folder": str(photos)}, "normalize": {"image_size": SIZE}}
        project.write_params(path, None, **sections, train={"epochs": 1}, evaluate={"corruptions": []})

    def stages(self, name: str) -> Sample:
        """Run both stages as whole processes. Memory is measured only for the larger folder, because that is slow."""
        family = "stages." if name == "large" else ""
        samples = []
        for stage in ("download", "normalize"):
            arguments = [argument.format(f"data/images/{name}-outputs") for argument in STAGES[stage]]
            samples.append(self.bench.project.module(f"stages.{stage}", *arguments, family=family))
        return Sample(
            sum(sample.wall_s for sample in samples),
            sum(sample.cpu_s for sample in samples),
            max(sample.peak_mib for sample in samples),
            {},
            max(sample.family_mib for sample in samples),
        )

    def results(self, samples: Samples) -> Result:
        if not self.processes:
            return Result((), ())
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        alone = [sample.loop_s for sample in samples[ALONE]]
        begun = {name: [sample.loop_s for sample in samples[name]] for name in STARTS}
        peak = max(sample.family_mib for sample in samples[LARGE])
        rows = [
            [WHOLE, summary(walls[WHOLE]), ""],
            [ALONE, summary(alone), ""],
            [LARGE, "", f"{peak:.0f}"],
            [f"`{REPRO}`", summary(walls[REPRO]), ""],
            [f"`{STATUS}`", summary(walls[STATUS]), ""],
            *([name, summary(begun[name]), ""] for name in STARTS),
        ]
        bars = [
            Bar(f"{WHOLE}, {self.count:,} JPEG files / {ALONE}", ratio(walls[WHOLE], alone), 1.3),
            Bar(f"peak memory of {WHOLE}, {COPIES * self.count:,} files, MiB", peak, 600),
            Bar(f"{REPRO}, {self.count:,} files / {STATUS}", ratio(walls[REPRO], walls[STATUS]), 1.3),
            Bar(f"{BIG} / 60 MiB", ratio(begun[BIG], begun[SMALL]), 1.2),
        ]
        header = ["process", "s", "peak of all processes, MiB"]
        return Result(bars, [Table(f"A folder of {self.count:,} images", header, rows)])


def unpack(archive: Path, folder: Path, every: int) -> int:
    """Extract every `every`-th file; returns the number of extracted files."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if not name.endswith("/")][::every]
        files.extractall(folder, names)
    return len(names)


def link(source: Path, target: Path, prefix: str) -> None:
    """Create hard links to all files, with a prefix before their names."""
    for place, _, names in os.walk(source):
        beside = target / Path(place).relative_to(source)
        beside.mkdir(parents=True, exist_ok=True)
        for name in names:
            (beside / f"{prefix}{name}").hardlink_to(Path(place, name))
