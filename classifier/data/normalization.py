"""Converts a source's arrays to the canonical form of `classifier.data.dataset`: sizes, splits, statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from classifier.data.dataset import SIZE, SMALLEST_STD, Split
from classifier.data.formats import Labelled
from classifier.data.splits import choose_by_class
from classifier.errors import UserError
from classifier.params import NormalizeParams

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def canonical_images(images: Images) -> Images:
    """(N, C, 32, 32) uint8 in 0..255 from (N, 8, 8) in 0..16, (N, 28, 28) or (N, 3, 32, 32) in 0..255."""
    match images.shape[1:]:
        case (8, 8):
            return pad(enlarge(images))
        case (28, 28):
            return pad(images)
        case (3, 32, 32):
            return images
    raise UserError(f"images of shape {images.shape[1:]}: allowed are (8, 8), (28, 28) and (3, 32, 32)")


def pad(images: Images) -> Images:
    """(N, 28, 28) -> (N, 1, 32, 32): two pixels of 0, the background, on every side, as in LeCun et al. 1998, II.B."""
    edge = (SIZE - 28) // 2
    return np.pad(images, ((0, 0), (edge, edge), (edge, edge)))[:, None]


def enlarge(images: Images) -> Images:
    """(N, 8, 8) in 0..16 -> (N, 28, 28) in 0..255, by Pillow's bicubic filter."""
    scaled = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)  # rounded
    size = (28, 28)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in scaled])


def make_splits(
    training: Labelled, test: Labelled | None, class_names: Sequence[str], params: NormalizeParams
) -> dict[str, Split]:
    """The splits of `classifier.data.dataset.SPLITS`, each in the source's order.

    The source's test images, if any, are the test split. Otherwise `params.test_fraction` of every class is held out.
    `params.validation_fraction` of the remaining images of every class is held out for validation, at least one image
    unless the fraction is 0. Raises UserError for a class that would have no training images.
    """
    generator = np.random.Generator(np.random.PCG64(params.seed))
    everything = Split(canonical_images(training[0]), training[1].astype(np.int64))
    kept = np.arange(len(everything))

    def hold_out(fraction: float) -> npt.NDArray[np.intp]:
        nonlocal kept
        held = choose_by_class(everything.labels[kept], class_names, fraction, generator)
        chosen, kept = kept[held], np.delete(kept, held)
        return chosen

    if test is None:
        test_split = _take(everything, hold_out(params.test_fraction))
    else:
        test_split = Split(canonical_images(test[0]), test[1].astype(np.int64))
    validation = _take(everything, hold_out(params.validation_fraction))
    return {"train": _take(everything, kept), "validation": validation, "test": test_split}


def statistics(sums: npt.NDArray[np.int64], pixels: int, params: NormalizeParams) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1, or those of params.

    sums: `(C, 2)`, of `pixels` pixels and of their squares, per channel. Raises UserError if params have a different
    number of channels, or if all pixels of a channel are equal.
    """
    channels = len(sums)
    given = {"normalize.mean": params.mean, "normalize.std": params.std}
    if wrong := [f"{key} is {value}" for key, value in given.items() if value is not None and len(value) != channels]:
        raise UserError(
            f"{' and '.join(wrong)}: allowed is null, or one number per channel of the images, which have {channels}"
        )
    computed = [mean_and_std(int(first), int(second), pixels) for first, second in sums]
    mean = params.mean or [mean for mean, _ in computed]
    std = params.std or [std for _, std in computed]
    if 0 in std:
        raise UserError(
            f"all pixels of channel {std.index(0)} of the training images are equal: set normalize.std, "
            "or use other images"
        )
    if min(std) < SMALLEST_STD:
        raise UserError(f"normalize.std is {std}: allowed are {SMALLEST_STD:g} to 10, or null")
    return mean, std


def mean_and_std(first: int, second: int, pixels: int) -> tuple[float, float]:
    """Of pixels scaled to 0..1, from the sum of the pixels and that of their squares.

    Computed in integers up to the last division: exact, and independent of order and machine.
    """
    return first / (255 * pixels), math.sqrt((pixels * second - first * first) / (255 * pixels) ** 2)


def counts(labels: Labels, class_names: Sequence[str]) -> list[int]:
    """Number of images per class."""
    return [int(count) for count in np.bincount(labels, minlength=len(class_names))]


def _take(split: Split, indices: npt.NDArray[np.intp]) -> Split:
    return Split(split.images[indices], split.labels[indices])
