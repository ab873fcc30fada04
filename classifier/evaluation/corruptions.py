"""Corrupted images: eight kinds at five strengths, to measure how a model's accuracy falls.

After Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
with kinds that make sense for 1 or 3 channels of any size: strengths are fractions of the image's side or of the range
of pixels, so that they look alike at 32 and at 224 pixels.

Everything but JPEG is computed in integers, and random draws depend only on the image's pixels, the kind and the
strength: an image is corrupted to the same bits on every machine and in every split, batch and order. JPEG's bits are
those of Pillow's encoder.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    import torch

STRENGTHS = (1, 2, 3, 4, 5)
ONE = 1 << 16  # of fixed-point numbers

NOISE = (0.04, 0.08, 0.12, 0.16, 0.20)  # standard deviation, of the pixels' range
BLUR = (0.010, 0.015, 0.020, 0.030, 0.040)  # standard deviation of the Gaussian, of the side
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added, of the pixels' range
CONTRAST = (0.75, 0.60, 0.45, 0.30, 0.15)  # factor
ROTATION = (6, 12, 18, 24, 30)  # degrees
TRANSLATION = (0.04, 0.08, 0.12, 0.16, 0.20)  # of the side
JPEG = (50, 25, 15, 10, 5)  # quality
OCCLUSION = (0.2, 0.3, 0.4, 0.5, 0.6)  # side of the gray square, of the image's side
DIRECTIONS = np.array([(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)])  # down, right


def corrupt(images: np.ndarray, kind: str, strength: int) -> np.ndarray:
    """Images `(N, C, H, W) uint8` -> the same, corrupted. kind: a key of `KINDS`. strength: 1 (weak) to 5 (strong)."""
    return KINDS[kind](np.ascontiguousarray(images), strength - 1)


def _noise(images: np.ndarray, level: int) -> np.ndarray:
    """Independent noise for each value: the sum of four random bytes, which is nearly Gaussian."""
    scale = round(NOISE[level] * 255 * ONE / math.sqrt(4 * (256**2 - 1) / 12))
    noisy = np.empty_like(images)
    for image, target, key in zip(images, noisy, _keys(images), strict=True):
        numbers = np.random.Philox(key=[key, level]).random_raw(-(-image.size // 2)).astype("<u8", copy=False)
        sums = numbers.view(np.uint8).reshape(4, -1).astype(np.int32).sum(axis=0)[: image.size]
        added = ((sums - 2 * 255) * scale + ONE // 2) >> 16
        target[:] = np.clip(image + added.reshape(image.shape), 0, 255)
    return noisy


def _blur(images: np.ndarray, level: int) -> np.ndarray:
    """Gaussian blur, padded with the edge's pixels."""
    import torch

    blurred = torch.from_numpy(images).float()
    blurred = _halves_up(_gaussian(images.shape[2], BLUR[level]) @ blurred)
    blurred = _halves_up(blurred @ _gaussian(images.shape[3], BLUR[level]).T)
    return np.asarray(blurred.byte())


def _gaussian(length: int, share: float) -> torch.Tensor:
    """`(length, length)`: a row of weights for each place, integers that sum to ONE.

    Products with pixels sum to less than 2^24, so that float32 holds them exactly, in any order of summation.
    """
    import torch

    sigma = share * length
    offsets = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    densities = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in offsets]
    weights = [round(ONE * density / sum(densities)) for density in densities]
    weights[len(weights) // 2] += ONE - sum(weights)
    rows = torch.zeros(length, length)
    places = torch.arange(length)
    for offset, weight in zip(offsets, weights, strict=True):
        rows[places, (places + offset).clamp(0, length - 1)] += weight
    return rows


def _halves_up(totals: torch.Tensor) -> torch.Tensor:
    """Sums of products with weights that sum to ONE -> the nearest integers."""
    return ((totals + ONE // 2) / ONE).floor()


def _brightness(images: np.ndarray, level: int) -> np.ndarray:
    added = np.uint8(round(BRIGHTNESS[level] * 255))
    brighter: np.ndarray = np.minimum(images, 255 - added) + added
    return brighter


def _contrast(images: np.ndarray, level: int) -> np.ndarray:
    """Move pixels towards the mean of each channel."""
    mean = images.sum(axis=(2, 3), keepdims=True, dtype=np.int64) // (images.shape[2] * images.shape[3])
    kept = round(CONTRAST[level] * ONE)
    lower = mean.astype(np.int32)
    flatter: np.ndarray = lower + (((images - lower) * kept + ONE // 2) >> 16)
    return flatter.astype(np.uint8)


def _rotation(images: np.ndarray, level: int) -> np.ndarray:
    """Clockwise or counterclockwise about the centre, with bilinear interpolation, padded with the edge's pixels."""
    angle, (height, width) = math.radians(ROTATION[level]), images.shape[2:]
    rotated = np.empty_like(images)
    for direction in (0, 1):
        chosen = np.flatnonzero(_draws(images, "rotation", level, 2) == direction)
        cosine, sine = round(math.cos(angle) * ONE), round(math.sin(angle) * ONE) * (1 - 2 * direction)
        # Twice the distance to the centre, which is an integer.
        down, right = 2 * np.arange(height)[:, None] - (height - 1), 2 * np.arange(width) - (width - 1)
        y = ((cosine * down - sine * right) + (height - 1) * ONE) // 2
        x = ((sine * down + cosine * right) + (width - 1) * ONE) // 2
        rotated[chosen] = _interpolated(images[chosen], y, x)
    return rotated


def _interpolated(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Pixels at the positions y and x `(H, W)`, fixed-point numbers with 16 bits after the point."""
    count, channels, height, width = images.shape
    flat = images.reshape(count, channels, height * width)
    top, left = y >> 16, x >> 16
    below, after = (y & (ONE - 1)) >> 5, (x & (ONE - 1)) >> 5  # 11 bits: with a pixel, a product has 30
    total = np.full((count, channels, y.size), 1 << 21, dtype=np.int32)  # to round to the nearest
    for row, vertical in ((top, 2048 - below), (top + 1, below)):
        for column, horizontal in ((left, 2048 - after), (left + 1, after)):
            places = np.clip(row, 0, height - 1) * width + np.clip(column, 0, width - 1)
            total += flat[:, :, places.ravel()] * (vertical * horizontal).astype(np.int32).ravel()
    return (total >> 22).astype(np.uint8).reshape(images.shape)


def _translation(images: np.ndarray, level: int) -> np.ndarray:
    """In one of eight directions, padded with the edge's pixels."""
    height, width = images.shape[2:]
    moved = np.empty_like(images)
    drawn = _draws(images, "translation", level, len(DIRECTIONS))
    for number, (down, right) in enumerate(DIRECTIONS):
        chosen = np.flatnonzero(drawn == number)
        rows = np.clip(np.arange(height) - down * round(TRANSLATION[level] * height), 0, height - 1)
        columns = np.clip(np.arange(width) - right * round(TRANSLATION[level] * width), 0, width - 1)
        moved[chosen] = images[chosen][:, :, rows[:, None], columns]
    return moved


def _jpeg(images: np.ndarray, level: int) -> np.ndarray:
    """Encode as JPEG and decode: in colour for 3 channels, otherwise each channel on its own."""
    from PIL import Image

    decoded = np.empty_like(images)
    for image, target in zip(images, decoded, strict=True):
        planes = [image.transpose(1, 2, 0)] if len(image) == 3 else list(image)
        for number, plane in enumerate(planes):
            file = io.BytesIO()
            Image.fromarray(plane).save(file, "jpeg", quality=JPEG[level])
            read = np.asarray(Image.open(file))
            if len(image) == 3:
                target[:] = read.transpose(2, 0, 1)
            else:
                target[number] = read
    return decoded


def _occlusion(images: np.ndarray, level: int) -> np.ndarray:
    """A gray square at a random place within the image."""
    height, width = images.shape[2:]
    side = max(1, round(OCCLUSION[level] * min(height, width)))
    occluded = images.copy()
    tops, lefts = (
        _draws(images, name, level, length - side + 1) for name, length in (("top", height), ("left", width))
    )
    for image, top, left in zip(occluded, tops, lefts, strict=True):
        image[:, top : top + side, left : left + side] = 128
    return occluded


def _keys(images: np.ndarray) -> list[int]:
    """CRC-32 of each image's pixels."""
    return [crc32(image) for image in images]


def _draws(images: np.ndarray, name: str, level: int, count: int) -> np.ndarray:
    """For each image, a number in 0..count-1 that depends on its pixels, the name and the level."""
    salt = f"{name} {level}".encode()
    return np.array([crc32(salt, key) % count for key in _keys(images)], dtype=np.int64)


KINDS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "rotation": _rotation,
    "translation": _translation,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
}
