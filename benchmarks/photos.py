"""A folder of photos: our whole train stage compared with common loops of torchvision and Lightning."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from statistics import median

from benchmarks.bench import PRETRAINED, Bench, Processes, Samples, Section
from benchmarks.images import unpack
from benchmarks.project import ROOT
from benchmarks.results import Bar, Result, Table, ratio, summary

ARCHIVE = ROOT / "../shared/data/clothing/clothing-folder.zip"  # ten kinds of clothes, 3,068 training photos
EPOCHS = 3
WORKERS = (0, 2)  # numbers of DataLoader workers; the better one counts
WAYS = {"loop": "ImageFolder and DataLoader", "lightning": "Lightning"}
OURS, NATIVE = "our train stage", "our train stage, native arithmetic"


class Photos(Section):
    """Three epochs of MobileNetV2 at 128 pixels, as whole processes. Has none if the archive is missing."""

    rounds = 3

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {}
        if not ARCHIVE.is_file():
            bench.say(f"{ARCHIVE} not found: section photos is skipped")
            return
        folder, epochs = bench.project.folder / "data/photos/files", 1 if bench.quick else EPOCHS
        unpack(ARCHIVE, folder, every=20 if bench.quick else 1)
        download = {"dataset": "folder", "folder": str(folder)}
        normalize = {"image_size": 128, "resize": "crop", "channels": 3}
        augment = {"per": "image", "shift": 0, "rotation": 0.0, "scale": 0.0, "flip": 0.5, "crop": 0.35}
        augment |= {"policy": "none", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
        train = {"network": "mobilenet_v2", "epochs": epochs, "optimizer": "adamw", "learning_rate": 1e-3}
        train |= {"weight_decay": 0.05, "label_smoothing": 0.1, "augment": augment}
        bench.normalize("photos", None, download=download, normalize=normalize, train=train)
        for name, arithmetic in ((OURS, "portable"), (NATIVE, "native")):
            path = f"data/photos/{arithmetic}.yaml"
            computing = {"device": bench.device, "arithmetic": arithmetic}
            bench.project.write_params(path, None, download=download, normalize=normalize, train=train | computing)
            arguments = (path, "data/photos/normalized", PRETRAINED, "data/photos/model", "data/photos/reports")
            self.processes[name] = partial(bench.project.module, "stages.train", *arguments)
        self.ways = dict(WAYS)
        if not find_spec("lightning"):
            bench.say("lightning is not installed, skipped: make bench installs it")
            del self.ways["lightning"]
        for way, words in self.ways.items():
            for workers in WORKERS:
                arguments = ("photos", str(folder), way, str(epochs), str(workers))
                self.processes[f"{words}, {workers} workers"] = partial(bench.contender, *arguments)

    def results(self, samples: Samples) -> Result:
        if not self.processes:
            return Result((), ())
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        rows = [[name, summary(found), f"{ratio(walls[OURS], found):.2f}"] for name, found in walls.items()]
        bars = []
        for words in self.ways.values():
            best = min((walls[f"{words}, {workers} workers"] for workers in WORKERS), key=median)
            bars.append(Bar(f"{OURS}, whole, three epochs of photos / {words}", ratio(walls[OURS], best), 0.8))
        return Result(bars, [Table("Photos", ["three epochs", "whole process, s", "ours / this"], rows)])
