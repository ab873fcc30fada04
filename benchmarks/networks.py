"""The loops of general networks: ours, resident and streamed, compared with the best hand-written one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from statistics import median

from benchmarks.bench import RECIPE, Bench, Processes, Samples, Section
from benchmarks.results import Bar, Result, Table, paired, summary

NETWORKS = {"mobilenet_v2": (128, 800), "resnet9": (32, 4000)}  # name -> images' size in pixels, their number
LAYOUTS = ("contiguous_format", "channels_last")
WAYS = {  # name -> train.arithmetic, train.parts, train.data
    "ours": ("native", 1, "resident"),  # one part on all cores, as a hand-written loop computes
    "ours, streamed": ("native", 1, "streamed"),
    "ours, two parts": ("native", 2, "resident"),
    "ours, portable, two parts": ("portable", 2, "resident"),
}
OURS = ("ours", "ours, streamed")
QUICK = 200  # images


class Networks(Section):
    """One epoch in batches of 100 images, with torchvision's MobileNetV2 and the ResNet-9 of networks/cifar.py."""

    rounds = 7  # MobileNetV2's loops differ from themselves by a fifth

    def __init__(self, bench: Bench) -> None:
        self.processes: Processes = {}
        for name, (size, images) in NETWORKS.items():
            count = QUICK if bench.quick else images
            contender = partial(bench.contender, "networks", "data/tutorial/normalized", name, str(size), str(count))
            for layout in LAYOUTS:
                self.processes[f"{name}: bare, {layout}"] = partial(contender, layout)
            for way, (arithmetic, parts, data) in WAYS.items():
                path = f"data/networks/{arithmetic}-{parts}-{data}.yaml"
                computing = {"device": bench.device, "arithmetic": arithmetic, "parts": parts, "processes": "auto"}
                bench.project.write_params(path, RECIPE, train={"epochs": 1, "data": data, **computing})
                self.processes[f"{name}: {way}"] = partial(contender, path)

    def results(self, samples: Samples) -> Result:
        own = {name: samples[name] for name in self.processes}
        titles = {name: f"{name} at {size}, native, one part" for name, (size, _) in NETWORKS.items()}
        loops = [compared(name, title, LAYOUTS, OURS, own) for name, title in titles.items()]
        return of_networks("General networks", "one epoch", loops)


Compared = tuple[list[list[str]], list[Bar]]


def compared(network: str, title: str, bare: Iterable[str], ours: tuple[str, str], samples: Samples) -> Compared:
    """Rows and bars of a network's loops: each relative to the best of those named `bare`.

    title: of the bars; ours: the names of our loop with resident images, and of it with streamed ones.
    """
    of_network = [name for name in samples if name.startswith(f"{network}: ")]
    loops = {name: [sample.loop_s for sample in samples[name]] for name in of_network}
    best = min((loops[f"{network}: bare, {way}"] for way in bare), key=median)
    rows = []
    for name in of_network:
        hashes = {sample.said["weights"][:12] for sample in samples[name] if "weights" in sample.said}
        rows.append([name, summary(loops[name], 3), f"{paired(loops[name], best):.2f}", ", ".join(sorted(hashes))])
    resident, streamed = (loops[f"{network}: {way}"] for way in ours)
    return rows, [
        Bar(f"{title}: our loop / the best bare loop", paired(resident, best), 1.03),
        Bar(f"{title}: streamed / resident", paired(streamed, resident), 1.03),
    ]


def of_networks(title: str, what: str, loops: Sequence[Compared]) -> Result:
    """The result of several networks' loops; `what` each loop runs."""
    rows, bars = (list(chain(*parts)) for parts in zip(*loops, strict=True))
    return Result(bars, [Table(title, [what, "loop, s", "/ best bare", "weights"], rows)])
