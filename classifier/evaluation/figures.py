"""Charts of a training and its evaluation, as PNG bytes (`classifier.evaluation.style`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from classifier.evaluation.metrics import Predictions, expected_calibration_error
from classifier.evaluation.style import BLUE, GREEN, INK, MUTED, ORANGE, elided, png
from classifier.evaluation.tables import WHOLE, confusions

CLOSE_UP = 30  # classes shown if there are more than `WHOLE`
DECADE = 10  # ratio of the largest to the smallest loss from which the axis is logarithmic
OTHERS = "all others"


@png
def confusion(predictions: Predictions) -> Figure:
    """Confusion matrix, normalized by row, with the counts; for more than `WHOLE` classes only the most confused ones.

    The column `OTHERS` then holds the predictions of classes that are not shown.
    """
    counts, names = predictions.confusion, [elided(name) for name in predictions.class_names]
    title = f"Confusion of {counts.sum():,} test images"
    images = counts.sum(axis=1)
    if len(names) > WHOLE:
        shown = _most_confused(predictions, CLOSE_UP)
        title = f"Largest confusions of {counts.sum():,} test images: {len(shown)} of {len(names):,} classes"
        rest = images[shown] - counts[np.ix_(shown, shown)].sum(axis=1)
        counts, images = np.column_stack([counts[np.ix_(shown, shown)], rest]), images[shown]
        names = [names[number] for number in shown]
    return _matrix(counts, images, names, title)


def _most_confused(predictions: Predictions, limit: int) -> list[int]:
    """Classes of the largest confusions; the two classes of a confusion are next to each other."""
    number = {name: place for place, name in enumerate(predictions.class_names)}
    table = confusions(predictions).head(limit)
    found = dict.fromkeys(
        number[name] for pair in zip(table["actual"], table["predicted"], strict=True) for name in pair
    )
    return [*found][:limit] or [*range(limit)]


def _matrix(counts: np.ndarray, images: np.ndarray, names: list[str], title: str) -> Figure:
    """counts: `(R, R or R + 1) int64`, images: `(R,) int64`, the sums of the whole rows."""
    rows, columns = counts.shape
    shares = counts / np.maximum(images, 1)[:, None]
    side = float(np.clip(2.6 + 0.46 * rows, 4.6, 13))
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    # The square root makes a share of 1% visible next to one of 99%.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    cell = 72 * (side - 2.2) / rows  # points
    size = min(9.0, 0.75 * cell)
    labels = [*names, *[OTHERS] * (columns - rows)]
    rotation = 0 if max(map(len, labels)) <= 3 and rows <= 20 else 45
    axes.set_xticks(
        range(columns), labels, size=size, rotation=rotation, ha="right" if rotation else "center",
        rotation_mode="anchor" if rotation else "default",
    )  # fmt: skip
    axes.set_yticks(range(rows), names, size=size)
    axes.set(xlabel="prediction", ylabel="label", title=title)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=min(1.5, cell / 20))
    axes.tick_params(which="minor", length=0)
    for row, column in np.argwhere(counts):
        text = f"{counts[row, column]}"
        axes.text(
            column, row, text, ha="center", va="center", size=min(size, cell / (0.75 * len(text))),
            color="white" if shares[row, column] > 0.3 else INK,
        ).set_in_layout(False)  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=PercentFormatter(1, decimals=0))
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the label's images")
    bar.outline.set_visible(False)
    return figure


@png
def calibration(bins: pd.DataFrame, scaled: pd.DataFrame | None, temperature: float | None) -> Figure:
    """Reliability diagram of the bins of `metrics.calibration`, with the number of images in each bin.

    scaled: the bins at the `temperature` that was fitted on the validation split; None without one.
    """
    panels = [(bins, "as trained")]
    if scaled is not None:
        panels.append((scaled, f"temperature {temperature:.3g}"))
    figure = Figure(figsize=(6.2 * len(panels), 6.4), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", height_ratios=(3, 1), squeeze=False)
    for (table, name), upper, lower in zip(panels, *grid, strict=True):
        _reliability(upper, lower, table[table["count"] > 0])
        upper.set_title(f"Calibration error {expected_calibration_error(table):.2%}, {name}")
    grid[0, 0].set(ylabel="accuracy")
    grid[1, 0].set(ylabel="images")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _reliability(upper: Axes, lower: Axes, seen: pd.DataFrame) -> None:
    middle, width = (seen["low"] + seen["high"]) / 2, (seen["high"] - seen["low"]) * 0.92
    upper.bar(middle, seen["accuracy"], width, color=BLUE, label="accuracy of the bin's images")
    upper.hlines(
        seen["confidence"], middle - width / 2, middle + width / 2, color=ORANGE, linewidth=3,
        label="their mean confidence",
    )  # fmt: skip
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.bar(middle, seen["count"], width, color=MUTED)
    # Most images are in the last bin; a linear scale would hide the others.
    lower.set_yscale("log")
    lower.set(ylim=(0.5, 8 * seen["count"].max()), xlabel="confidence (probability of the predicted class)")
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.yaxis.set_minor_formatter(NullFormatter())
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if len(seen) <= 20:
        for place, count in zip(middle, seen["count"], strict=True):
            lower.annotate(f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", fontsize=7)


@png
def curves(histories: Mapping[int, pd.DataFrame], seed: int) -> Figure:
    """Loss, validation accuracy and learning rate over the optimizer steps.

    histories: by seed, each the columns of `reports/train/history.csv` (step, epoch, running_loss, learning_rate,
    train_loss, validation_loss, validation_accuracy), NaN for missing values. Of several seeds, lines show the mean and
    bands reach from the lowest to the highest seed; the learning rate is that of `seed`. Without validation, the figure
    shows loss and learning rate only.
    """
    chosen = histories[seed]
    validated = chosen.dropna(subset=["validation_accuracy"])
    panels = 2 if validated.empty else 3
    figure = Figure(figsize=(7.2, 1.0 + 2.1 * panels), layout="constrained")
    loss, *middle, rate = figure.subplots(panels, 1, sharex=True)
    several = f", mean and range of {len(histories)} seeds" if len(histories) > 1 else ""
    _line(loss, histories, "running_loss", BLUE, "training (running loss)", linewidth=1.2)
    if middle:
        marker = {"marker": "o", "markersize": 3.5}
        _line(loss, histories, "validation_loss", ORANGE, "validation", **marker)
        _line(middle[0], histories, "validation_accuracy", ORANGE, "validation", **marker)
        lasts = [each["validation_accuracy"].dropna().iloc[-1] for each in histories.values()]
        middle[0].set(ylabel="accuracy", title=f"Validation accuracy: {np.mean(lasts):.2%} at the end{several}")
        middle[0].yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(ylabel="cross entropy (nats)", title=f"Loss{several}")
    values = pd.concat([each[["running_loss", "validation_loss"]] for each in histories.values()]).stack()
    if values.min() > 0 and values.max() >= DECADE * values.min():
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        loss.grid(which="minor", linewidth=0.4)
    elif loss.get_ylim()[0] < loss.get_ylim()[1] / 2:  # otherwise a small decrease would look flat
        loss.set_ylim(bottom=0)
    loss.legend(loc="upper right")
    _line(rate, {seed: chosen}, "learning_rate", GREEN, "learning rate")
    epochs = int(chosen["epoch"].max())
    rate.set(ylabel="learning rate", title="Learning rate", ylim=(0, None))
    rate.set_xlabel(f"optimizer steps ({epochs} {'epoch' if epochs == 1 else 'epochs'})")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def _line(
    axes: Axes, histories: Mapping[int, pd.DataFrame], column: str, color: str, label: str, **style: object
) -> None:
    table = pd.concat([history.set_index("step")[column] for history in histories.values()], axis=1).dropna(how="all")
    steps = table.index.to_numpy()
    axes.plot(steps, table.mean(axis=1), color=color, label=label, **style)  # type: ignore[arg-type]
    if len(histories) > 1:
        axes.fill_between(steps, table.min(axis=1), table.max(axis=1), color=color, alpha=0.25, linewidth=0)
