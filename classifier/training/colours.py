"""TrivialAugment's changes of colour: one call for all images of a batch that get the same operation.

The arithmetic is that of `torchvision.transforms.v2.functional`, whose own functions take one strength for all images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def change_colours(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Images `(B, C, H, W) uint8`; `operations (B,)`: indices of `COLOURS`, other numbers leave an image unchanged.

    `strengths (B,)` are in -1..1; operations with a single direction ignore the sign.
    """
    changed = images.clone()
    for number, change in enumerate(COLOURS.values()):
        picked = (operations == number).nonzero().squeeze(1)
        if len(picked):
            changed[picked] = change(images[picked], strengths[picked][:, None, None, None])
    return changed


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _bytes(images * _factor(strength))


def color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images), strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((-3, -2, -1), keepdim=True), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Move all pixels, except those of the border, towards or away from the mean of their neighbourhood."""
    pixels = images.float()
    channels = pixels.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3)
    inner = pixels[..., 1:-1, 1:-1]
    inner += (conv2d(pixels, kernel, groups=channels).round() - inner) * (1 - _factor(strength))
    return _bytes(pixels)


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep 8 to 2 bits of each pixel."""
    dropped = (6 * strength.abs()).round().to(torch.uint8)
    return images >> dropped << dropped


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert the pixels above a threshold."""
    return torch.where(images >= 255 * (1 - strength.abs()), 255 - images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # imported here: it takes 2 s

    changed: Tensor = functional.autocontrast(images)
    return changed


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    changed: Tensor = functional.equalize(images)
    return changed


COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    change.__name__: change
    for change in (brightness, color, contrast, sharpness, posterize, solarize, autocontrast, equalize)
}


def _factor(strength: Tensor) -> Tensor:
    return 1 + 0.99 * strength


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    factor = _factor(strength)
    return _bytes(images * factor + other * (1 - factor))


def _grey(images: Tensor) -> Tensor:
    """`(B, 1, H, W)` float, of integers."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().tensor_split(3, 1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).floor()


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).to(torch.uint8)
