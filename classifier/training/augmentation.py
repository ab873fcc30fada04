"""Random augmentation of the training images, drawn for each image and computed for whole batches on the device.

All draws of an epoch are made beforehand from (seed, epoch), a row for each place in the epoch's order. The place
determines image and step, whichever process computes this part of the batch. All geometric changes together are one
interpolation, or none if pixels only move. Mixing of images and labels is in `classifier.training.mixing`.
"""

from __future__ import annotations

from math import log

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from classifier.params import AugmentParams
from classifier.training.colours import COLOURS, change_colours

Draws = dict[str, Tensor]  # a row for each place in the epoch's order
LEVELS = 31  # of TrivialAugment's strengths
# TrivialAugment's wide space (Müller and Hutter 2021, table 6): operations, one of which an image gets.
GEOMETRY = {"shear_x": 0.99, "shear_y": 0.99, "translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0}  # strongest
OPERATIONS = ("identity", *GEOMETRY, *COLOURS)
NARROWEST, WIDEST = 3 / 4, 4 / 3  # width / height of a crop


def generator(seed: int, epoch: int, *purpose: int) -> np.random.Generator:
    """The generator of an epoch and a purpose, so that no purpose depends on what else is turned on."""
    return np.random.default_rng([seed, epoch, *purpose])


class Augmentation:
    """The augmentation that `params` ask for, of square images of `size` pixels."""

    def __init__(self, params: AugmentParams, size: int) -> None:
        self.params, self.size = params, size
        self.trivial = params.policy == "trivialaugment"
        self.interpolates = params.rotation > 0 or params.scale > 0 or params.crop < 1 or self.trivial

    def draw(self, seed: int, epoch: int, count: int, batch_size: int, random: np.random.Generator) -> Draws:
        """The draws of an epoch of `count` images. `random` is the generator that the epoch's order came from."""
        params = self.params
        rows = -(-count // batch_size) if params.per == "batch" else count
        shifts = torch.from_numpy(random.integers(-params.shift, params.shift, endpoint=True, size=(rows, 2)))
        angles = torch.from_numpy(random.uniform(-params.rotation, params.rotation, rows))  # degrees
        scales = torch.from_numpy(random.uniform(1 - params.scale, 1 + params.scale, rows))
        if params.per == "batch":
            shifts, angles, scales = (
                draws.repeat_interleave(batch_size, 0)[:count] for draws in (shifts, angles, scales)
            )
        flips = torch.from_numpy(generator(seed, epoch, 1).random(count) < params.flip)
        draws: Draws = {}
        if self.interpolates:
            matrices = affine(shifts, angles, scales)
            if params.flip:
                matrices = product(mirror(flips), matrices)
            if params.crop < 1:
                matrices = product(self._crops(generator(seed, epoch, 2), count), matrices)
            if self.trivial:
                draws, moved = self._trivial(generator(seed, epoch, 3), count)
                matrices = product(matrices, moved)
            draws["matrices"] = matrices.float()
        else:
            if params.shift:
                draws["shifts"] = shifts
            if params.flip:
                draws["flips"] = flips
        return draws

    def _crops(self, random: np.random.Generator, count: int) -> Tensor:
        """Random resized crops (Szegedy et al. 2015): a part of random area, shape and position becomes the image."""
        area, ratio, across, down = (torch.from_numpy(column.copy()) for column in random.random((count, 4)).T)
        area = self.params.crop + (1 - self.params.crop) * area
        ratio = torch.exp(log(NARROWEST) + (log(WIDEST) - log(NARROWEST)) * ratio)
        width, height = (side.sqrt().clamp(max=1) for side in (area * ratio, area / ratio))
        return rows_of(
            *(width, torch.zeros_like(width), (across - 0.5) * (1 - width) * self.size),
            *(torch.zeros_like(height), height, (down - 0.5) * (1 - height) * self.size),
        )

    def _trivial(self, random: np.random.Generator, count: int) -> tuple[Draws, Tensor]:
        """TrivialAugment: one operation per image, at a random strength. Returns draws for colours, and matrices."""
        operations = torch.from_numpy(random.integers(len(OPERATIONS), size=count))
        levels, signs = (torch.from_numpy(random.integers(choices, size=count)) for choices in (LEVELS, 2))
        strengths = levels / (LEVELS - 1) * (2 * signs - 1)  # -1..1
        by = {
            name: torch.where(operations == OPERATIONS.index(name), strongest * strengths.double(), 0.0)
            for name, strongest in GEOMETRY.items()
        }
        one = torch.ones(count, dtype=torch.float64)
        moved = rows_of(one, by["shear_x"], -by["translate_x"], by["shear_y"], one, -by["translate_y"])
        turned = affine(torch.zeros(count, 2), by["rotate"], one)
        draws = {"colours": operations - len(OPERATIONS) + len(COLOURS), "strengths": strengths}
        return draws, product(turned, moved)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Augment raw images `(..., B, C, H, W) uint8` by their rows of the draws `(..., B, ...)`; new pixels are 0."""
        if not draws:
            return images
        moved, rows = images.flatten(0, -4), {name: draw.flatten(0, images.ndim - 4) for name, draw in draws.items()}
        if "shifts" in rows:
            moved = shifted(moved, rows["shifts"], self.params.shift)
        if "flips" in rows:
            moved = torch.where(rows["flips"][:, None, None, None], moved.flip(-1), moved)
        if "matrices" in rows:
            moved = warped(moved, rows["matrices"])
        if "colours" in rows:
            moved = change_colours(moved, rows["colours"], rows["strengths"])
        return moved.view_as(images)


def shifted(images: Tensor, shifts: Tensor, largest: int) -> Tensor:
    """Images `(B, C, H, W)`, each moved down and to the right by its row of `shifts (B, 2)`, whole pixels."""
    count, channels, height, width = images.shape
    padded = pad(images, [largest] * 4)
    image, channel, row, column = padded.stride()
    # The windows of the padded images, without copies, by the place of their first pixel.
    last = image * count - image + 2 * largest * (row + column)
    windows = padded.as_strided((last + 1, channels, height, width), (1, channel, row, column))
    down, right = (largest - shifts).unbind(-1)
    first = torch.arange(0, image * count, image, device=images.device) + down * row + right
    if images.device.type != "cpu":
        return windows[first]
    return windows.index_select(0, first)  # copies rows, where a CPU's indexing copies byte by byte


def warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Transform images `(B, C, S, S)`, each by its matrix `(B, 6)`: bilinear, like torchvision's `affine`."""
    size = images.shape[-1]
    places = torch.arange(size, device=images.device) - (size - 1) / 2  # from the centre
    across, down, offset = (matrices / (size / 2)).view(-1, 2, 3).unbind(-1)  # (B, 2) each
    by_column = (across[..., None] * places)[:, :, None, :]
    by_row = (down[..., None] * places + offset[..., None])[:, :, :, None]
    grids = (by_column + by_row).permute(0, 2, 3, 1)  # (B, S, S, 2); a matrix product would take longer
    moved = grid_sample(images.float(), grids, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round().to(images.dtype)


# Geometry as rows of 2 x 3 matrices `(N, 6) float64` that map a pixel of the result back to the image, in pixels from
# the centre. Sines are torch's, which are the same on every processor.


def affine(shifts: Tensor, angles: Tensor, scales: Tensor) -> Tensor:
    """Matrices of shifts down and to the right in pixels, angles in degrees, and scale factors."""
    a, b = (f(torch.deg2rad(angles)) / scales for f in (torch.cos, torch.sin))
    dy, dx = shifts.unbind(-1)
    return rows_of(a, b, -a * dx - b * dy, -b, a, b * dx - a * dy)


def mirror(flips: Tensor) -> Tensor:
    """Matrices that flip images horizontally where `flips (N,) bool`."""
    none, one = torch.zeros(len(flips), dtype=torch.float64), torch.ones(len(flips), dtype=torch.float64)
    return rows_of(torch.where(flips, -one, one), none, none, none, one, none)


def product(first: Tensor, second: Tensor) -> Tensor:
    """Matrix products: pixels of the result go through `second` and then `first`."""
    a, b, c, d, e, f = first.unbind(-1)
    g, h, i, j, k, m = second.unbind(-1)
    return rows_of(a * g + b * j, a * h + b * k, a * i + b * m + c, d * g + e * j, d * h + e * k, d * i + e * m + f)


def rows_of(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1)
