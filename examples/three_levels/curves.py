"""Run all five programs on MNIST and draw their loss curves over each other.

    python examples/three_levels/curves.py docs/images/three-levels.png

Each program prints its lines and the seconds that it took.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.figure import Figure
from tutorial import Result, Settings

from classifier.evaluation.style import BLUE, GREEN, INK, MUTED, ORANGE, png

PROGRAMS = ("numpy_alone", "tensors_alone", "with_autograd", "with_modules", "with_engine")
COLORS = (MUTED, ORANGE, GREEN, BLUE, INK)


@png
def curves(results: dict[str, Result], settings: Settings) -> Figure:
    """Top: the running losses. Bottom: how much each differs from that of numpy alone."""
    figure = Figure(figsize=(7.0, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    first = np.array(results[PROGRAMS[0]].losses)
    steps = settings.log_every * np.arange(1, len(first) + 1)
    for number, (name, color) in enumerate(zip(PROGRAMS, COLORS, strict=True)):
        found = results[name]
        label = f"{name.replace('_', ' ')}: {found.accuracy:.2%}"
        upper.plot(steps, found.losses, color=color, linewidth=9 - 2 * number, label=label)  # the last one is thinnest
        if number:
            lower.plot(steps, np.abs(found.losses - first), color=color, marker="o", markersize=3.5)
    upper.set(ylabel="cross entropy (nats)", title="Running loss, and accuracy on the test images")
    upper.legend(loc="lower left")
    lower.set(yscale="log", xlabel="optimizer steps", ylabel="nats", title="Distance from numpy alone")
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    return figure


def main() -> None:
    settings, results = Settings(), {}
    for name in PROGRAMS:
        print(f"{name}.py", flush=True)
        start = perf_counter()
        results[name] = import_module(name).main(settings)
        print(f"{perf_counter() - start:.0f} seconds\n", flush=True)
    Path(sys.argv[1]).write_bytes(curves(results, settings))


if __name__ == "__main__":
    main()
