"""Figures of a training and its evaluation, as PNG bytes (`classifier.evaluation.style`)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from classifier.errors import UserError
from classifier.evaluation.metrics import Predictions, expected_calibration_error, most_confident_mistakes
from classifier.evaluation.style import BLUE, DPI, GREEN, INK, MUTED, ORANGE, png

LETTER = 0.72 * DPI / 72  # approximate width of a bold letter, in pixels per point of font size


@png
def misclassified(images: np.ndarray, predictions: Predictions, limit: int) -> Figure:
    """Show the `limit` most confident mistakes, each with its label, prediction and probability.

    Without mistakes, the figure holds a line that says so.

    images: `(N, C, 32, 32) uint8` in 0..255, C 1 (gray) or 3 (RGB).
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"images have {images.shape[1]} channels: a picture can show 1 or 3")
    shown = most_confident_mistakes(predictions, limit)
    names = [
        f"{predictions.class_names[label]} \u2192 {predictions.class_names[prediction]}"
        for label, prediction in zip(predictions.labels[shown], predictions.predicted[shown], strict=True)
    ]
    # All positions are in pixels of the figure, so that an image pixel covers a whole number of them.
    longest = max(map(len, names), default=1)
    size = 32 * int(np.clip(longest * LETTER * 8 / 32, 5, 7))
    text_size = min(10.0, size / (longest * LETTER))
    gap, caption, margin, header = 24, 64, 36, 108
    columns = min(max(len(shown), 1), max(5, round(len(shown) ** 0.5)))
    rows = -(-len(shown) // columns)
    width = max(2 * margin + columns * (size + gap) - gap, 900)
    height = header + rows * (size + caption) + 12
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(margin, 48, _mistakes_title(len(shown), predictions), size=12, weight="bold")
    if len(shown):
        axes.text(margin, 80, "label \u2192 prediction, and the probability the model gave it", size=9, color=MUTED)
    for place, (index, name) in enumerate(zip(shown, names, strict=True)):
        left, top = margin + place % columns * (size + gap), header + place // columns * (size + caption)
        axes.imshow(
            images[index].transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255, interpolation="nearest",
            extent=(left, left + size, top + size, top),
        )  # fmt: skip
        centre, probability = left + size / 2, f"{predictions.top_probability[index]:.1%}"
        axes.text(centre, top + size + 22, name, size=text_size, weight="bold", ha="center")
        axes.text(centre, top + size + 43, probability, size=8, color=MUTED, ha="center")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")  # last, because imshow sets them too
    return figure


def _mistakes_title(shown: int, predictions: Predictions) -> str:
    mistakes = int((predictions.predicted != predictions.labels).sum())
    if mistakes == 0:
        what = "No mistakes"
    elif mistakes == 1:
        what = "The only mistake"
    elif shown == mistakes:
        what = f"The {mistakes:,} mistakes"
    else:
        what = f"The {shown} most confident of {mistakes:,} mistakes"
    return f"{what} on {len(predictions):,} test images"


@png
def confusion(counts: np.ndarray, class_names: list[str]) -> Figure:
    """Confusion matrix, normalized by row; shows the counts for up to 20 classes.

    counts: `(K, K) int64`, images by label (row) and prediction (column).
    """
    classes = len(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.46 * classes, 4.6, 11))
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    # The square root makes a share of 1% visible next to one of 99%.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    names_size = 9 if classes <= 20 else max(3.0, 180 / classes)
    rotation = 0 if max(map(len, class_names)) <= 3 else 45
    axes.set_xticks(
        range(classes), class_names, size=names_size, rotation=rotation, ha="right" if rotation else "center",
        rotation_mode="anchor" if rotation else "default",
    )  # fmt: skip
    axes.set_yticks(range(classes), class_names, size=names_size)
    axes.set(xlabel="prediction", ylabel="label", title=f"Confusion of {counts.sum():,} test images")
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    if classes <= 20:
        axes.set_xticks(np.arange(1, classes) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, classes) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        for row, column in np.argwhere(counts):
            text = f"{counts[row, column]}"
            axes.text(
                column, row, text, ha="center", va="center", size=9 if len(text) < 4 else 7.5,
                color="white" if shares[row, column] > 0.3 else INK,
            )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=PercentFormatter(1, decimals=0))
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the label's images")
    bar.outline.set_visible(False)
    return figure


@png
def calibration(bins: pd.DataFrame) -> Figure:
    """Reliability diagram of the bins of `metrics.calibration`, with the number of images per bin."""
    figure = Figure(figsize=(6.2, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    seen = bins[bins["count"] > 0]
    accuracy, confidence = seen["accuracy"], seen["confidence"]
    middle, width = (seen["low"] + seen["high"]) / 2, (seen["high"] - seen["low"]) * 0.92
    upper.bar(middle, accuracy, width, color=BLUE, label="accuracy")
    gap = {"alpha": 0.85, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    upper.bar(
        middle, (confidence - accuracy).clip(lower=0), width, accuracy, color=ORANGE, label="overconfident by", **gap
    )
    upper.bar(
        middle, (accuracy - confidence).clip(lower=0), width, confidence, color=GREEN, label="underconfident by", **gap
    )
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    upper.set(ylim=(0, 1.02), ylabel="accuracy")
    upper.set_title(f"Expected calibration error {expected_calibration_error(bins):.2%}")
    upper.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, columnspacing=1.2, handlelength=1.6)
    lower.bar(middle, seen["count"], width, color=MUTED)
    # Most images lie in the last bin; a linear scale would hide the others.
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.set(xlim=(0, 1), ylim=(0.5, None), xlabel="confidence (probability of the predicted class)", ylabel="images")
    lower.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


@png
def curves(history: pd.DataFrame) -> Figure:
    """Loss, validation accuracy and learning rate over the optimizer steps.

    history: the columns of `reports/train/history.csv` (step, epoch, running_loss, learning_rate, validation_loss,
    validation_accuracy), NaN for missing values. Without validation, the figure shows loss and learning rate only.
    """
    validated = history.dropna(subset=["validation_accuracy"])
    panels = 2 if validated.empty else 3
    figure = Figure(figsize=(7.2, 1.0 + 2.1 * panels), layout="constrained")
    loss, *middle, rate = figure.subplots(panels, 1, sharex=True)
    _line(loss, history, "running_loss", BLUE, "training (running loss)", linewidth=1.2)
    if middle:
        marker = {"marker": "o", "markersize": 3.5}
        _line(loss, validated, "validation_loss", ORANGE, "validation", **marker)
        _line(middle[0], validated, "validation_accuracy", ORANGE, "validation", **marker)
        last = validated["validation_accuracy"].iloc[-1]
        middle[0].set(ylabel="accuracy", title=f"Validation accuracy: {last:.2%} at the end")
        middle[0].yaxis.set_major_formatter(PercentFormatter(1))
    loss.set(ylabel="cross entropy (nats)", title="Loss")
    if loss.get_ylim()[0] < loss.get_ylim()[1] / 2:  # otherwise a small decrease would look flat
        loss.set_ylim(bottom=0)
    loss.legend(loc="upper right")
    _line(rate, history, "learning_rate", GREEN, "learning rate")
    epochs = int(history["epoch"].max())
    rate.set(ylabel="learning rate", title="Learning rate", ylim=(0, None))
    rate.set_xlabel(f"optimizer steps ({epochs} {'epoch' if epochs == 1 else 'epochs'})")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def _line(axes: Axes, history: pd.DataFrame, column: str, color: str, label: str, **style: object) -> None:
    rows = history.dropna(subset=[column])
    axes.plot(rows["step"], rows[column], color=color, label=label, **style)  # type: ignore[arg-type]
