"""A residual network for images of 32x32 pixels: `train.network: cifar:resnet9`, or `cifar:mirrored_resnet9`."""

from torch import Tensor, nn


def resnet9(channels: int, classes: int, size: int, width: int = 32) -> nn.Module:
    """Eight convolutions and a linear layer, as in David Page's DAWNBench entry of 2018, at half its width.

    1,646,122 parameters and 95 million multiply-adds for an image of three channels and ten classes.
    """
    return nn.Sequential(
        *_convolution(channels, width),
        *_convolution(width, 2 * width),
        nn.MaxPool2d(2),  # (N, 2 width, 16, 16)
        Residual(2 * width),
        *_convolution(2 * width, 4 * width),
        nn.MaxPool2d(2),
        *_convolution(4 * width, 8 * width),
        nn.MaxPool2d(2),  # (N, 8 width, 4, 4)
        Residual(8 * width),
        nn.MaxPool2d(size // 8),  # (N, 8 width, 1, 1); adaptive pooling has no deterministic kernel on a GPU
        nn.Flatten(),
        nn.Linear(8 * width, classes),
        Scale(0.125),  # so that the first steps, with a large learning rate, do not saturate the softmax
    )


def mirrored_resnet9(channels: int, classes: int, size: int) -> nn.Module:
    """`resnet9` that also takes the mirror image at evaluation, for which it needs twice the multiply-adds.

    For images that mean the same when they are mirrored: train it with `train.augment.flip: 0.5`.
    """
    return Mirrored(resnet9(channels, classes, size))


class Mirrored(nn.Module):
    """In evaluation mode, the mean of the logits of an image and of its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits if self.training else (logits + self.network(images.flip(-1))) / 2


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class Residual(nn.Module):
    """Two convolutions, whose result is added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*_convolution(channels, channels), *_convolution(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self.convolutions(images)
        return images + changed


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
