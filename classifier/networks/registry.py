"""Networks by name: LeNet-5, torchvision's, `timm/NAME`, and `module:function` in the project's folder `networks/`."""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from classifier.data.dataset import DatasetMeta, PixelStatistics
from classifier.data.preprocessing import Preprocessing
from classifier.errors import UserError
from classifier.networks.model import Classifier, LeNet5
from classifier.networks.names import is_own
from classifier.networks.own import own_network
from classifier.networks.zoo import timm_network, torchvision_network
from classifier.schema.train import LENET5, LENET5_SIZE


class NetworkSpec(PixelStatistics):
    """What a classifier is built from, besides its weights."""

    architecture: Annotated[str, Field(max_length=200)]  # train.network
    pretrained: str | None  # train.pretrained
    dataset: str
    preprocessing: Preprocessing

    @property
    def size(self) -> int:
        """Height and width of the images, pixels."""
        return self.preprocessing.image_size

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        """A network of three channels gets a gray image three times, each normalized by a mean and std of its own."""
        if len(self.mean) != len(self.std) or len(self.mean) not in ({1, 3} if self.channels == 1 else {self.channels}):
            raise UserError(f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels")
        return self


def specify(data: DatasetMeta, network: str, pretrained: str | None = None) -> NetworkSpec:
    """The specification of `network`, a value of train.network, for this data set."""
    repeated = 3 if data.channels == 1 and not (network == LENET5 or is_own(network)) else 1
    return NetworkSpec(
        architecture=network,
        pretrained=pretrained,
        dataset=data.name,
        channels=data.channels,
        class_names=data.class_names,
        preprocessing=data.preprocessing,
        ranges=data.ranges,
        mean=data.mean * repeated,
        std=data.std * repeated,
    )


def spec_of(meta: DatasetMeta | NetworkSpec) -> NetworkSpec:
    """The specification itself, or that of LeNet-5 for a data set."""
    return meta if isinstance(meta, NetworkSpec) else specify(meta, LENET5)


def build(meta: DatasetMeta | NetworkSpec, seed: int = 0) -> Classifier:
    """A new classifier whose initial weights depend only on `seed`.

    Raises UserError for a network that does not exist or does not take the images.
    """
    spec = spec_of(meta)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(spec.architecture, spec.channels, len(spec.class_names), spec.size)
    return Classifier(network, spec.mean, spec.std)


def _network(name: str, channels: int, classes: int, size: int) -> nn.Module:
    if name == LENET5:
        if size != LENET5_SIZE:
            raise UserError(
                f"lenet5 takes images of 32x32 pixels, these are {size}x{size}: set normalize.image_size to 32, or "
                "train.network to another network, such as resnet18"
            )
        return LeNet5(channels, classes)
    if is_own(name):
        return own_network(name, channels, classes, size)
    if channels not in (1, 3):
        raise UserError(f"{name} takes images of 1 or 3 channels, these have {channels}: set normalize.channels")
    if name.startswith("timm/"):
        return timm_network(name, classes, size)
    return torchvision_network(name, classes, size)
