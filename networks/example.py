"""A small example of a network of your own: `train.network: example:small`."""

from torch import nn


def small(channels: int, classes: int, size: int) -> nn.Module:
    """Two convolutions with batch normalization and a linear layer, for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, classes),
    )
