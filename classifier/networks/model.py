"""LeNet-5, and the classifier that wraps it and takes raw pixels.

It shows PyTorch's three levels: tensors (`images`), modules that hold the weights (`LeNet5`), and a forward pass that
autograd differentiates (`classifier.training.engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from classifier.networks.rows import RowConvolutions


class LeNet5(nn.Module):
    """LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B.

    As in the PyTorch tutorial, with ReLU instead of tanh, 2x2 max pooling instead of trained subsampling, a C3
    layer that is connected to all maps of S2, and a linear output. 61,706 parameters for one channel and ten classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.rows = RowConvolutions(self.conv1, self.conv2)
        expected = 6 * (25 * channels + 1) + 16 * (25 * 6 + 1) + 120 * 401 + 84 * 121 + classes * 85
        assert parameter_count(self) == expected, f"{parameter_count(self)} parameters, LeNet-5 has {expected}"

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images `(N, C, 32, 32)` float -> logits `(N, classes)`."""
        if self.training and images.device.type == "cpu":
            x = self.rows(self.conv1, self.conv2, images)  # faster on a CPU
        else:
            x = self._convolve(images)
        x = relu(self.fc1(x.flatten(1)))  # (N, 120)
        x = relu(self.fc2(x))  # (N, 84)
        logits: Tensor = self.fc3(x)
        return logits

    def _convolve(self, images: Tensor) -> Tensor:
        # Pooling before ReLU is the same function (both are monotonic) on a quarter of the values.
        x = relu(pooled(self.conv1(images)))  # (N, 6, 14, 14)
        return relu(pooled(self.conv2(x)))  # (N, 16, 5, 5)


def pooled(x: Tensor) -> Tensor:
    """2x2 max pooling, `(N, C, H, W)` -> `(N, C, H / 2, W / 2)`.

    On a CPU, `max_pool2d` takes ten times as long as two maxima, whose bits are the same. It is used where gradients
    are needed, which differ for equal values, and in an export, whose graph it keeps small.
    """
    if x.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return max_pool2d(x, 2)
    rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


class Classifier(nn.Module):
    """A network with its normalization, so that training and serving both take raw pixels."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` per channel, of pixels scaled to 0..1."""
        super().__init__()
        self.network = network
        self.evaluated: list[nn.Module] = []  # modules in evaluation mode even while others are trained
        std_, mean_ = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (std, mean))
        self.register_buffer("scale", (1 / (255 * std_)).float(), persistent=False)
        self.register_buffer("offset", (-mean_ / std_).float(), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.evaluated:
            module.eval()
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """Raw `(N, C, 32, 32) uint8` -> `(pixel / 255 - mean) / std` float32."""
        return normalized(images, self.offset, self.scale)

    def forward(self, images: Tensor) -> Tensor:
        """Raw images `(N, C, 32, 32) uint8` in 0..255 -> logits `(N, classes)`."""
        logits: Tensor = self.network(self.normalize(images))
        return logits


def normalized(images: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """`offset + images * scale` in float32, with values per channel or per pixel (`Classifier.normalize`)."""
    return torch.addcmul(offset, images.float(), scale)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters in `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def head_of(network: nn.Module) -> set[str]:
    """The names of the parameters of the last layer, which gives the logits.

    It is the module that `get_classifier()` returns, if the network has this method, as timm's have; otherwise the last
    linear layer or convolution in the order of definition.
    """
    if callable(get := getattr(network, "get_classifier", None)):
        found = get()
        heads = found if isinstance(found, tuple) else (found,)
        own = {id(parameter) for head in heads for parameter in head.parameters()}
        return {name for name, parameter in network.named_parameters() if id(parameter) in own}
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return {name for name, _ in network.named_parameters() if name.rpartition(".")[0] in layers[-1:]}
