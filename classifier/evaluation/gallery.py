"""Pictures of images: the misclassified ones, and what corruptions look like.

All positions are in pixels of the figure, so that a pixel of a small image covers an integer number of them.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from classifier.errors import UserError
from classifier.evaluation.corruptions import STRENGTHS, corrupt
from classifier.evaluation.style import DPI, INK, MUTED, SHARES, elided, png

LETTER = 0.72 * DPI / 72  # approximate width of a bold letter, in pixels per point of font size
NARROWEST = 960  # pixels of a picture's width


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """An image `(C, H, W) uint8` as `(height, width, 3) uint8`, at most `side` pixels high and wide.

    A small image is enlarged by an integer, a large one is reduced. Raises UserError unless C is 1 or 3.
    """
    if len(image) not in (1, 3):
        raise UserError(f"images have {len(image)} channels: a picture can show 1 or 3")
    colours = np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
    height, width = image.shape[1:]
    if (times := side // max(height, width)) >= 1:
        return colours.repeat(times, axis=0).repeat(times, axis=1)
    shape = (max(1, width * side // max(height, width)), max(1, height * side // max(height, width)))
    return np.asarray(Image.fromarray(colours).resize(shape, Image.Resampling.BOX))


def png_of(pixels: np.ndarray) -> bytes:
    """`(height, width, 3) uint8` as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", optimize=True)
    return file.getvalue()


@png
def misclassified(images: np.ndarray, table: pd.DataFrame, of: int, total: int) -> Figure:
    """Show misclassified images, each with its label, prediction, probability and path.

    images: `(M, C, H, W) uint8` in 0..255, C 1 (gray) or 3 (RGB), a row of `tables.misclassified` each. of: number of
    all misclassified ones, of `total` images. Without any, the figure says so.
    """
    rows = table.to_dict("records")
    names = [(elided(str(row["label"])), elided(str(row["predicted"]))) for row in rows]
    longest = max((len(label) + len(predicted) + 3 for label, predicted in names), default=1)
    stacked = longest > 24  # the prediction is below the label
    if stacked:
        longest = max(max(len(label), len(predicted) + 2) for label, predicted in names)
    columns = max(6, round(len(table) ** 0.5))
    columns = -(-len(table) // max(1, -(-len(table) // columns))) or 1  # rows of equal length
    gap, margin, header = 24, 36, 108
    wanted = int(np.clip(longest * LETTER * 8, 160, 224))
    wanted = max(wanted, (NARROWEST - 2 * margin + gap) // columns - gap if columns > 1 else 480)
    tiles = [thumbnail(image, wanted) for image in images]
    side = max((max(tile.shape[:2]) for tile in tiles), default=0)
    lines = [*([""] if stacked else []), "", *([""] if table["path"].notna().any() else [])]
    caption = 40 + 22 * len(lines)
    text_size = min(10.0, wanted / (longest * LETTER))
    width = max(2 * margin + columns * (side + gap) - gap, NARROWEST)
    step = (width - 2 * margin - side) // max(1, columns - 1)  # from tile to tile, so that they fill the width
    height = header + -(-len(table) // columns) * (side + caption) + 12
    figure, axes = _canvas(width, height)
    axes.text(margin, 48, _title(len(table), of, total), size=12, weight="bold")
    if len(table):
        axes.text(margin, 80, "label \u2192 prediction, and the probability the model gave it", size=9, color=MUTED)
    for place, (tile, (label, predicted), row) in enumerate(zip(tiles, names, rows, strict=True)):
        left = margin + place % columns * step
        top = header + place // columns * (side + caption)
        _show(axes, tile, left, top)
        centre, below = left + side / 2, top + side + 22
        for line in [label, f"\u2192 {predicted}"] if stacked else [f"{label} \u2192 {predicted}"]:
            axes.text(centre, below, line, size=text_size, weight="bold", ha="center")
            below += 22
        axes.text(centre, below, f"{row['probability']:.1%}", size=8, color=MUTED, ha="center")
        if isinstance(row["path"], str):
            path = elided(row["path"], int(side / (LETTER * 0.85 * 6)))
            axes.text(centre, below + 20, path, size=6, color=MUTED, ha="center")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")  # last, because imshow sets them too
    return figure


def _title(shown: int, wrong: int, total: int) -> str:
    if wrong == 0:
        return f"None of {total:,} test images is misclassified"
    if shown == wrong:
        return f"{wrong:,} of {total:,} test images {'is' if wrong == 1 else 'are'} misclassified"
    return f"{shown} of {wrong:,} misclassified images, those predicted with the highest probability"


@png
def robustness(table: pd.DataFrame, accuracy: float, example: np.ndarray) -> Figure:
    """Accuracy under each corruption and strength, below an image `(C, H, W) uint8` that is corrupted in the same way.

    table: as `robustness.table` makes it; without rows, the figure says so. accuracy: on the images as they are.
    """
    kinds = list(dict.fromkeys(table["corruption"]))
    margin, names, gap, caption, header = 36, 170, 16, 46, 118
    tile = thumbnail(example, 96 if max(example.shape) > 32 else 96 // max(example.shape) * max(example.shape))
    side = max(tile.shape[:2])
    width = margin * 2 + names + (len(STRENGTHS) + 1) * (side + gap) - gap
    height = header + max(1, len(kinds)) * (side + caption) + 12
    figure, axes = _canvas(width, height)
    axes.text(margin, 48, "Accuracy on corrupted test images", size=12, weight="bold")
    if not kinds:
        axes.text(margin, 84, "Not measured: evaluate.corruptions in params.yaml is empty", size=9, color=MUTED)
    else:
        axes.text(margin, 80, "an example, and the accuracy on test images", size=9, color=MUTED)

    def cell(column: int, top: int, pixels: np.ndarray, value: float) -> None:
        left = margin + names + column * (side + gap)
        _show(axes, pixels, left, top)
        box = {"boxstyle": "round,pad=0.35", "facecolor": SHARES(value**2), "edgecolor": "none"}
        color = "white" if value > 0.7 else INK
        axes.text(
            left + side / 2, top + side + 22, f"{value:.1%}", size=8, ha="center", va="center", color=color, bbox=box
        )

    for row, kind in enumerate(kinds):
        top = header + row * (side + caption)
        of_kind = table[table["corruption"] == kind].sort_values("strength")
        axes.text(margin, top + side / 2, kind, size=10, weight="bold", va="center")
        mean = f"mean {of_kind['accuracy'].mean():.1%}"
        axes.text(margin, top + side / 2 + 26, mean, size=8, color=MUTED, va="center")
        cell(0, top, tile, accuracy)
        for column, (strength, value) in enumerate(zip(of_kind["strength"], of_kind["accuracy"], strict=True), start=1):
            cell(column, top, thumbnail(corrupt(example[None], kind, strength)[0], side), value)
    for column, title in enumerate(["original", *map(str, STRENGTHS)] if kinds else []):
        axes.text(
            margin + names + column * (side + gap) + side / 2, header - 12, title, size=8, ha="center", color=MUTED
        )
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def _canvas(width: int, height: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    return figure, axes


def _show(axes: Axes, pixels: np.ndarray, left: float, top: float) -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, interpolation="nearest", extent=(left, left + width, top + height, top))
