"""The usual ranges of a data set's brightness, contrast, border and colour, to recognize images unlike it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ranges = Mapping[str, Sequence[float]]  # measure -> lowest and highest usual value, 0..1
Values = npt.NDArray[np.float64]
CHUNK = 1 << 22  # pixels, which are widened to 4 bytes each
RARE = 0.001  # fraction of the images below the usual values; as many are above
NEGATIVE = "its negative is like them"
TOLERANCE = 0.1  # beyond the usual values, before an image counts as unlike the others
WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "border": ("darker at the border", "brighter at the border"),
    "colour": ("less colourful", "more colourful"),
}


def measured(channels: int) -> list[str]:
    """The names of the measures of images with this many channels."""
    return [name for name in WORDS if channels > 1 or name != "colour"]


def moments(images: np.ndarray) -> Values:
    """Images `(N, C, H, W) uint8` -> sums of the pixels and of their squares, `(N, C, 2)`."""
    floats = images.astype(np.float64)  # sums of integers below 2 ** 53 are exact
    return np.stack([np.einsum("nchw->nc", floats), np.einsum("nchw,nchw->nc", floats, floats)], 2)


def measure(images: np.ndarray, margin: int, sums: Values | None = None) -> dict[str, Values]:
    """Images `(N, C, H, W) uint8` -> the measures of each, `(N,)` float64 in 0..1.

    brightness: mean of all pixels; contrast: their standard deviation; border: mean of the outermost pixels inside the
    margin, which preprocessing fills; colour: mean difference between the largest and the smallest channel. All sums
    are of integers, so that every machine gets the same values. `sums` are the images' moments, if they are known.
    """
    inner = images[..., margin : images.shape[2] - margin, margin : images.shape[3] - margin]
    channels, height, width = inner.shape[1:]
    count = channels * height * width
    mean, square = (moments(inner) if sums is None or margin else sums).sum(1).T / count
    ring = [inner[:, :, 0], *([inner[:, :, -1]] if height > 1 else [])]
    ring += [inner[:, :, 1:-1, column] for column in {0, width - 1}]
    edge = sum(part.shape[2] for part in ring)  # pixels
    measures = {
        "brightness": mean / 255,
        "contrast": np.sqrt(np.maximum(square - mean * mean, 0)) / 255,
        "border": sum(part.sum((1, 2), np.int64) for part in ring) / (255 * channels * edge),
    }
    if channels > 1:
        spread = inner.max(1) - inner.min(1)
        measures["colour"] = spread.sum((1, 2), np.int64) / (255 * height * width)
    return measures


def usual(images: np.ndarray, margin: int) -> dict[str, list[float]]:
    """The ranges of training images `(N, C, H, W) uint8`."""
    step = max(1, CHUNK // images[0].size)
    chunks = [measure(images[start : start + step], margin) for start in range(0, len(images), step)]
    return ranges_of({name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def ranges_of(measures: Mapping[str, Values]) -> dict[str, list[float]]:
    """The ranges of all images' measures, without the RARE images at either end."""
    found = {}
    for name, values in measures.items():
        ordered = np.sort(values)
        cut = int(RARE * len(ordered))
        found[name] = [round(float(ordered[end]), 4) for end in (cut, len(ordered) - 1 - cut)]
    return found


def far(images: np.ndarray, ranges: Ranges, margin: int) -> npt.NDArray[np.bool_]:
    """Which of the images `(N, C, H, W) uint8` are unlike the training's, `(N,)`."""
    found, measures = np.zeros(len(images), bool), measure(images, margin)
    for name, (low, high) in ranges.items():
        found |= _outside(measures[name], low, high)
    return found


def unlike(image: np.ndarray, ranges: Ranges, margin: int) -> str | None:
    """How an image `(C, H, W) uint8` is unlike the training's, and whether its negative is like them; None if alike."""
    if not (found := _beyond(image, ranges, margin)):
        return None
    text = f"unlike the training images: {' and '.join(found)}"
    return text if _beyond(255 - image, ranges, margin) else f"{text}; {NEGATIVE}"


def _outside(values: Any, low: float, high: float) -> Any:
    """Whether a value, or each of an array, is outside a range by more than the tolerance."""
    return (values < low - TOLERANCE) | (values > high + TOLERANCE)


def _beyond(image: np.ndarray, ranges: Ranges, margin: int) -> list[str]:
    values = {name: float(value[0]) for name, value in measure(image[None], margin).items()}
    return [
        f"{WORDS[name][values[name] > high]} ({values[name]:.2f}, theirs {low:.2f} to {high:.2f})"
        for name, (low, high) in ranges.items()
        if _outside(values[name], low, high)
    ]
