"""LeNet-5's convolutions and their pooling on a CPU: the same function, but for the order of sums, a tenth sooner.

A processor computes 16 numbers at once, and LeNet-5's first convolution has 6 channels. Here a place of its output
holds four rows of 8 channels, two of which are zeros, and a place of the second's output two rows of 16: 32 numbers
each. Their order in channels-last memory is such that pooling takes the largest of four neighbours, and leaves what the
second convolution reads: two rows to a place. Nothing is copied but the filters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad, relu


class RowConvolutions:
    """Both convolutions, each followed by 2x2 max pooling and ReLU."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d) -> None:
        """Two modules of LeNet-5's shapes, of which this keeps where each of their numbers goes."""
        shapes = [parameter.shape for parameter in (*conv1.parameters(), *conv2.parameters())]
        counts = [shape.numel() for shape in shapes]
        numbers = torch.split(torch.arange(1, sum(counts) + 1), counts)  # 0 is a zero that is added
        arranged = arrange(*(number.view(shape) for number, shape in zip(numbers, shapes, strict=True)))
        self.shapes = [each.shape for each in arranged]
        self.sources = torch.cat([each.flatten() for each in arranged])

    def __call__(self, conv1: nn.Conv2d, conv2: nn.Conv2d, images: Tensor) -> Tensor:
        """Normalized images `(N, C, 32, 32)` -> `(N, 16, 5, 5)`."""
        parameters = (*conv1.parameters(), *conv2.parameters())
        values = torch.cat([images.new_zeros(1), *(each.flatten() for each in parameters)])
        arranged = torch.split(values.index_select(0, self.sources), [shape.numel() for shape in self.shapes])
        filters, bias, filters2, bias2 = (each.view(shape) for each, shape in zip(arranged, self.shapes, strict=True))
        x = conv2d(images, filters.permute(0, 3, 1, 2), bias, stride=(4, 1))  # (N, 32, 7, 28)
        x = relu(max_pool2d(places(x), (1, 4)))  # (N, 16, 7, 14): two rows of 8 channels
        x = conv2d(x, filters2.permute(0, 3, 1, 2), bias2)  # (N, 32, 5, 10)
        return relu(max_pool2d(places(x), (1, 4)))  # (N, 16, 5, 5)


def arrange(filters: Tensor, bias: Tensor, filters2: Tensor, bias2: Tensor) -> list[Tensor]:
    """`(6, C, 5, 5), (6,), (16, 6, 5, 5), (16,)` -> `(32, 8, 5, C), (32,), (32, 3, 5, 16), (32,)`, channels last."""
    filters, bias = pad(filters, (0, 0, 0, 0, 0, 0, 0, 2)), pad(bias, (0, 2))  # 8 channels
    # Of four rows the first and the third are pooled with the one that follows, and then share a place.
    four = torch.cat([pad(filters, (0, 0, row, 3 - row)) for row in (0, 2, 1, 3)])  # (32, C, 8, 5)
    filters2 = pad(filters2, (0, 0, 0, 0, 0, 2))
    two = torch.cat([pad(filters2, (0, 0, row, 1 - row)) for row in (0, 1)])  # (32, 8, 6, 5)
    two = two.view(32, -1, 3, 2, 5).permute(0, 3, 1, 2, 4).flatten(1, 2)  # (32, 16, 3, 5), reading two rows at a place
    return [four.permute(0, 2, 3, 1), bias.repeat(4), two.permute(0, 2, 3, 1), bias2.repeat(2)]


def places(x: Tensor) -> Tensor:
    """`(N, 16 R, H, W)` -> `(N, 16, H, W R)` in the same channels-last memory: every 16 channels get a place."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width * channels // 16, 16).permute(0, 3, 1, 2)
