"""The figures of a comparison: the runs' curves, and the images on which they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from classifier.evaluation.figures import DECADE
from classifier.evaluation.style import BLUE, DPI, GREEN, INK, MUTED, ORANGE, elided, png

COLORS = [BLUE, ORANGE, GREEN, "#8a5bb0", "#c2504d", "#7d6b57", "#c77fb4", INK]
PANELS = {  # MLflow's name -> the panel's title
    "train/running_loss": "Training loss (running)",
    "validation/loss": "Validation loss",
    "validation/accuracy": "Validation accuracy",
}
SIZE, COLUMNS = 160, 6  # size of a drawn image, pixels (five per pixel of 32); images in a row
LEGEND = 90  # characters of all labels in one line of the legend
FEW = 60  # points per curve up to which each point is marked
Curve = Sequence[tuple[int, float]]  # step, value


@png
def curves(runs: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """A panel per metric with the curves of all runs, over the optimizer steps.

    runs: label -> MLflow's name of a metric -> its points.
    """
    panels = [name for name in PANELS if any(name in of_run for of_run in runs.values())]
    count = max(1, len(panels))
    figure = Figure(figsize=(7.2, 1.0 + 2.4 * count), layout="constrained")
    lines: dict[str, Line2D] = {}
    for axes, name in zip(figure.subplots(count, 1, sharex=True, squeeze=False).flat, panels, strict=False):
        marker = "o" if all(len(of_run.get(name, [])) <= FEW for of_run in runs.values()) else None
        for (label, of_run), color in zip(runs.items(), cycle(COLORS), strict=False):
            points = of_run.get(name, [])
            steps, values = [step for step, _ in points], [value for _, value in points]
            (line,) = axes.plot(steps, values, color=color, linewidth=1.3, marker=marker, markersize=3.5)
            lines.setdefault(label, line)
        axes.set_title(PANELS[name])
        axes.set_ylabel("accuracy" if "accuracy" in name else "cross entropy (nats)")
        values = [value for of_run in runs.values() for _, value in of_run.get(name, [])]
        if "loss" in name and min(values) > 0 and max(values) >= DECADE * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    last = figure.axes[-1]
    last.set_xlabel("optimizer steps" if panels else "no run has a curve")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    columns = max(1, LEGEND // max(map(len, lines), default=1))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.align_ylabels()
    return figure


@png
def disagreements(
    images: np.ndarray, table: pd.DataFrame, runs: Sequence[str], class_names: Sequence[str], total: int
) -> Figure:
    """The images of `table`, out of `total`, with their label and each run's prediction; correct ones are green.

    images: `(N, C, 32, 32) uint8` in 0..255, C 1 (gray) or 3 (RGB), one per row of `table`. table: label, and
    predicted_<k> and probability_<k> of the k-th of `runs`.
    """
    # Positions are in pixels of the figure, so that each image pixel covers an integer number of them.
    gap, line, margin, header = 24, 24, 36, 100
    caption = 34 + line * len(runs)
    columns = min(max(len(table), 1), COLUMNS)
    width = max(2 * margin + columns * (SIZE + gap) - gap, 900)
    height = header + -(-len(table) // columns) * (SIZE + caption + gap)
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    title = f"{total:,} images on which the runs disagree" if total != 1 else "The image on which the runs disagree"
    shown = f", the {len(table)} with the highest probabilities" if len(table) < total else ""
    axes.text(margin, 46, title + shown, size=12, weight="bold")
    names = [elided(name) for name in class_names]
    axes.text(margin, 76, "predictions in this order: " + ", ".join(runs), size=8, color=MUTED)
    for place, (image, row) in enumerate(zip(images, table.to_dict("records"), strict=True)):
        left = margin + place % columns * (SIZE + gap)
        top = header + place // columns * (SIZE + caption + gap)
        axes.imshow(
            image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255, interpolation="nearest",
            extent=(left, left + SIZE, top + SIZE, top),
        )  # fmt: skip
        label = f"{names[row['label']]}  ({row['index']})"
        axes.text(left + SIZE / 2, top + SIZE + 22, label, size=8, weight="bold", ha="center")
        for number in range(len(runs)):
            predicted = row[f"predicted_{number}"]
            said = f"{names[predicted]}  {row[f'probability_{number}']:.0%}"
            color = GREEN if predicted == row["label"] else ORANGE
            axes.text(left + SIZE / 2, top + SIZE + 22 + line * (number + 1), said, size=8, color=color, ha="center")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")  # last, because imshow also sets them
    return figure
