"""Random shift, rotation and change of size, the same for all images of a batch.

One draw per batch keeps the work on whole tensors; over many batches every image sees the whole range.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from classifier.params import AugmentParams


class Augmentation:
    """Draws for every batch of one epoch, made beforehand from `random`, so that a batch's place names its draw."""

    def __init__(self, params: AugmentParams, batches: int, random: np.random.Generator) -> None:
        self.affine = params.rotation > 0 or params.scale > 0
        self.active = self.affine or params.shift > 0
        shifts = random.integers(-params.shift, params.shift, endpoint=True, size=(batches, 2))
        self.shifts: list[tuple[int, int]] = [(int(dy), int(dx)) for dy, dx in shifts]  # pixels
        self.angles = random.uniform(-params.rotation, params.rotation, batches)  # degrees
        self.scales = random.uniform(1 - params.scale, 1 + params.scale, batches)

    def __call__(self, images: Tensor, batch: int) -> Tensor:
        """Raw images `(N, C, H, W) uint8` of the epoch's batch number `batch` -> the same shape; new pixels are 0."""
        if not self.active:
            return images
        dy, dx = self.shifts[batch]
        if not self.affine:  # a whole-pixel shift is a window: the same result in a seventh of the time
            return pad(images, (dx, -dx, dy, -dy))
        from torchvision.transforms.v2 import InterpolationMode, functional  # takes 2 s, not everybody needs it

        moved: Tensor = functional.affine(
            images,
            angle=float(self.angles[batch]),
            translate=[dx, dy],
            scale=float(self.scales[batch]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        return moved
