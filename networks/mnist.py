"""LeNet-5 for handwritten digits that straightens them: `train.network: mnist:straightened_lenet5`."""

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, pad

from classifier.errors import UserError

SHIFT = 1  # pixel
STEEPEST = 1.0  # of the lines that straightening makes vertical: 45 degrees
NO_INK = 1e-3


def straightened_lenet5(channels: int, classes: int, size: int) -> nn.Module:
    """LeNet-5's 61,706 parameters, normalized over the batch after each layer, without further parameters.

    It is trained on straightened images and on images as they are, half of a batch each. At evaluation, its logits are
    means over 18 views of an image, which take 18 times the multiply-adds. Train it with `train.augment.shift: 1` or
    more. Images are light on a uniform dark ground.
    """
    if size != 32:
        raise UserError(f"LeNet-5 takes images of 32x32 pixels, not {size}x{size}: set normalize.image_size to 32")
    return Straightened(
        nn.Sequential(
            nn.Conv2d(channels, 6, 5),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(6, affine=False),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16, affine=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.BatchNorm1d(120, affine=False),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.BatchNorm1d(84, affine=False),
            nn.ReLU(),
            nn.Linear(84, classes),
        )
    )


class Straightened(nn.Module):
    """Straightens half of a batch in training. At evaluation, the mean of the logits of both, shifted by a pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            half = images.shape[0] // 2
            moved = SHIFT * (2 * torch.rand(half, 2, device=images.device) - 1)
            logits: Tensor = self.network(torch.cat([straightened(images[:half], moved), images[half:]]))
            return logits
        centred = straightened(images, torch.zeros(images.shape[0], 2, device=images.device))
        views = [view for each in (images, centred) for view in shifted(each)]
        total: Tensor = sum(self.network(view) for view in views)
        return total / len(views)


def straightened(images: Tensor, moved: Tensor) -> Tensor:
    """Images sheared so that digits are upright, centred, and moved (LeCun et al. 1998, section III.A: deslanting).

    images: `(N, 1, H, W)`, light on the darkest pixel as ground; moved: `(N, 2)`, pixels to the left and upwards.
    """
    count, _, height, width = images.shape
    ink = (images - images.amin((1, 2, 3), keepdim=True)).mean(1)  # (N, H, W)
    x, y = ((2 * torch.arange(each, device=images.device) + 1) / each - 1 for each in (width, height))  # as in a grid
    y = y[:, None]
    total = ink.sum((1, 2)).clamp_min(NO_INK)
    centre_x, centre_y = ((ink * each).sum((1, 2)) / total for each in (x, y))
    from_x, from_y = x - centre_x[:, None, None], y - centre_y[:, None, None]
    slant = (ink * from_x * from_y).sum((1, 2)) / (ink * from_y * from_y).sum((1, 2)).clamp_min(NO_INK)
    slant = slant.clamp(-STEEPEST, STEEPEST)
    left, up = (moved * 2 / width).unbind(1)
    one, zero = torch.ones_like(slant), torch.zeros_like(slant)
    rows = [torch.stack([one, slant, centre_x + left + slant * up], 1), torch.stack([zero, one, centre_y + up], 1)]
    grid = affine_grid(torch.stack(rows, 1), [count, 1, height, width], align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def shifted(images: Tensor) -> list[Tensor]:
    """Images shifted by up to SHIFT pixels in both directions; the border's pixels continue outside."""
    height, width = images.shape[-2:]
    padded = pad(images, [SHIFT] * 4, mode="replicate")
    places = range(2 * SHIFT + 1)
    return [padded[..., y : y + height, x : x + width] for y in places for x in places]
