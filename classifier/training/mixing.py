"""Augmentation after normalization: random erasing, MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019).

An image's partner is the one before it in its part of the batch, so that a process needs only its own images; the
epoch's order makes partners random. Each image has its own share or box.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from torch import Tensor

from classifier.params import AugmentParams
from classifier.training.augmentation import Draws, generator


@dataclass(frozen=True)
class Targets:
    """The labels of images `(..., B)`; for mixed images also their partners' labels, and the share of the own label."""

    labels: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None


class Mixing:
    """The erasing and mixing that `params` ask for, of square images of `size` pixels."""

    def __init__(self, params: AugmentParams, size: int) -> None:
        self.params, self.size = params, size

    def draw(self, seed: int, epoch: int, count: int) -> Draws:
        """The draws of an epoch of `count` images."""
        draws: Draws = {}
        if self.params.erase:
            draws["erased"] = self._erased(generator(seed, epoch, 4), count)
        if self.params.mixup or self.params.cutmix:
            draws |= self._mixed(generator(seed, epoch, 5), count)
        return draws

    def _erased(self, random: np.random.Generator, count: int) -> Tensor:
        """Boxes of random erasing (Zhong et al. 2020): 2% to a third of the area, of any shape from 3:10 to 10:3."""
        chance, area, ratio = random.random((3, count))
        area, ratio = 0.02 + (0.33 - 0.02) * area, 0.3 + (1 / 0.3 - 0.3) * ratio
        sides = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)])
        return self._boxes(random, np.where(chance < self.params.erase, sides, 0))

    def _mixed(self, random: np.random.Generator, count: int) -> Draws:
        mixup, cutmix = self.params.mixup, self.params.cutmix
        cut = random.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
        blended, uncut = (beta(random, alpha or 1, count) for alpha in (mixup, cutmix))
        boxes = self._boxes(random, np.where(cut, np.sqrt(1 - uncut), 0) * np.ones((2, 1)))
        top, left, bottom, right = boxes.unbind(-1)
        outside = 1 - (bottom - top) * (right - left) / self.size**2  # boxes are cut at the border
        blend = torch.from_numpy(np.where(cut, 1, blended)).float()
        # The own share of a pixel outside the box, the box of the partner, the share of the own label.
        return {"blend": blend, "cut": boxes, "shares": blend * outside}

    def _boxes(self, random: np.random.Generator, sides: np.ndarray) -> Tensor:
        """Boxes with `sides (2, N)` in 0..1 at random places, cut at the border: top, left, bottom, right `(N, 4)`."""
        centres = random.random(sides.shape)
        ends = [((centres + way * sides / 2).clip(0, 1) * self.size).round() for way in (-1, 1)]
        return torch.from_numpy(np.concatenate(ends).T.astype(np.float32))

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Targets]:
        """Erase and mix normalized images `(..., B, C, H, W)` and labels `(..., B)` by their rows of the draws."""
        if "erased" in draws:
            images = images.masked_fill(self._inside(draws["erased"]), 0)  # the mean of all pixels
        if "cut" not in draws:
            return images, Targets(labels)
        own = draws["blend"][..., None, None, None].masked_fill(self._inside(draws["cut"]), 0)
        return images.roll(1, -4).lerp(images, own), Targets(labels, labels.roll(1, -1), draws["shares"])

    def _inside(self, boxes: Tensor) -> Tensor:
        """Which pixels are in an image's box: `(..., B, 4)` -> `(..., B, 1, H, W) bool`."""
        places = torch.arange(self.size, device=boxes.device)
        top, left, bottom, right = boxes[..., None, None, None].unbind(-4)  # (..., B, 1, 1, 1)
        rows, columns = places[:, None], places
        return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def beta(random: np.random.Generator, alpha: float, count: int) -> np.ndarray:
    """Draws from Beta(alpha, alpha): Devroye 1996, "Random variate generation in one line of code".

    numpy's draws use the C library's logarithms and powers, whose last bit depends on its version; torch's do not.
    """
    lengths, angles = torch.from_numpy(random.random((2, count)))
    across = torch.cos(2 * pi * angles)
    drawn: np.ndarray = (0.5 + across / (across**2 + 1 / (torch.exp(-lengths.log() / alpha) - 1)).sqrt() / 2).numpy()
    return drawn
