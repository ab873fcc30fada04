"""The loops of general networks: ours, resident and streamed, compared with the best hand-written one."""

from __future__ import annotations

from functools import partial
from statistics import median

from benchmarks.bench import RECIPE, Bench, Processes, Samples, Section
from benchmarks.results import Bar, Result, Table, ratio, summary

NETWORKS = {"mobilenet_v2": (128, 800), "resnet9": (32, 4000)}  # name -> images' size in pixels, their number
LAYOUTS = ("contiguous_format", "channels_last")
WAYS = {  # name -> train.arithmetic, train.data
    "ours": ("native", "resident"),
    "ours, streamed": ("native", "streamed"),
    "ours, portable": ("portable", "resident"),
}
QUICK = 200  # images


class Networks(Section):
    """One epoch in batches of 100 images, with torchvision's MobileNetV2 and the ResNet-9 of networks/cifar.py."""

    rounds = 3

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {}
        for name, (size, images) in NETWORKS.items():
            count = QUICK if bench.quick else images
            contender = partial(bench.contender, "networks", "data/tutorial/normalized", name, str(size), str(count))
            for layout in LAYOUTS:
                self.processes[f"{name}: bare, {layout}"] = partial(contender, layout)
            for way, (arithmetic, data) in WAYS.items():
                path = f"data/networks/{arithmetic}-{data}.yaml"
                computing = {"parts": "auto", "processes": "auto"}
                train = {"epochs": 1, "device": bench.device, "arithmetic": arithmetic, "data": data, **computing}
                bench.project.write_params(path, RECIPE, train=train)
                self.processes[f"{name}: {way}"] = partial(contender, path)

    def results(self, samples: Samples) -> Result:
        loops = {name: [sample.loop_s for sample in samples[name]] for name in self.processes}
        rows, bars = [], []
        for network, (size, _) in NETWORKS.items():
            bare = min((loops[f"{network}: bare, {layout}"] for layout in LAYOUTS), key=median)
            for name in (name for name in self.processes if name.startswith(f"{network}: ")):
                hashes = {sample.said["weights"][:12] for sample in samples[name] if "weights" in sample.said}
                rows.append([name, summary(loops[name]), f"{ratio(loops[name], bare):.2f}", ", ".join(sorted(hashes))])
            ours, streamed = loops[f"{network}: ours"], loops[f"{network}: ours, streamed"]
            bars += [
                Bar(f"{network} at {size}: our loop / the best bare loop", ratio(ours, bare), 1.03),
                Bar(f"{network} at {size}: streamed / resident", ratio(streamed, ours), 1.03),
            ]
        return Result(bars, [Table("General networks", ["one epoch", "loop, s", "/ best bare", "weights"], rows)])
