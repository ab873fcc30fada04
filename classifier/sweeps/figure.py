"""The figure of a sweep: parallel coordinates, a line per experiment from its values to its result on validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from classifier.evaluation.style import INK, MUTED, png
from classifier.sweeps.experiments import Experiment, Outcome, shown

DECADE = 10  # an axis is logarithmic if the ratio of its largest to its smallest value is at least this


@png
def parallel(results: Sequence[tuple[Experiment, Outcome]], metric: str) -> Figure:
    """An axis per param with more than one value, and one for `metric`; the best experiment's line is the thickest.

    results: experiments with this metric, at least one.
    """
    results = [(experiment, outcome) for experiment, outcome in results if metric in outcome.metrics]
    names = [name for name in results[0][0].values if len({shown(each.values[name]) for each, _ in results}) > 1]
    values = np.array([outcome.metrics[metric] for _, outcome in results])
    accuracy = metric.endswith("accuracy")
    best = int(values.argmax() if accuracy else values.argmin())
    axes_of = [_places([each.values[name] for each, _ in results]) for name in names]
    axes_of.append(_places(list(values)))
    figure = Figure(figsize=(max(5.0, 1.9 * len(axes_of) + 1.5), 4.2), layout="constrained")
    axes = figure.subplots()
    scale = Normalize(values.min(), values.max() if np.ptp(values) else values.min() + 1)
    colors = colormaps["viridis" if accuracy else "viridis_r"]
    for number in [*(place for place in range(len(results)) if place != best), best]:
        heights = [places[number] for places, _ in axes_of]
        width = 3.2 if number == best else 1.3
        axes.plot(range(len(axes_of)), heights, color=colors(scale(values[number])), linewidth=width, alpha=0.85)
    for at, (_, ticks) in enumerate(axes_of[:-1]):
        axes.axvline(at, color=MUTED, linewidth=1)
        for height, text in ticks:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.annotate(
                text, (at, height), (5, 0), textcoords="offset points", size=8, color=INK, va="center", bbox=box
            )
    axes.set_xticks(range(len(axes_of)), [*(name.removeprefix("train.") for name in names), metric.replace("_", " ")])
    axes.set(xlim=(-0.1, len(axes_of) - 1), ylim=(-0.04, 1.04), yticks=[])
    axes.set_title(f"{len(results)} experiments; thick: {results[best][0].name}, {_written(values[best], accuracy)}")
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    if accuracy:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    return figure


def _written(value: float, accuracy: bool) -> str:
    return f"{value:.2%}" if accuracy else f"{value:.4g}"


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """The heights of values on an axis, 0..1, and its ticks. Numbers are drawn to scale, other values evenly spaced."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        order = sorted({shown(value) for value in values})
        at = {text: place / max(1, len(order) - 1) for place, text in enumerate(order)}
        return [at[shown(value)] for value in values], [(place, text) for text, place in at.items()]
    low, high = min(numbers), max(numbers)
    scaled = np.log if low > 0 and high >= DECADE * low else np.asarray
    reach = float(scaled(high) - scaled(low)) or 1.0
    heights = [float(scaled(value) - scaled(low)) / reach for value in numbers]
    marked = dict(sorted(zip(heights, numbers, strict=True)))
    if len(marked) > 6:  # as in a search: mark the ends only
        marked = {height: marked[height] for height in (min(marked), max(marked))}
    return heights, [(height, shown(value)) for height, value in marked.items()]
