"""The networks of torchvision.models and of timm, without weights and with a head for the number of classes.

They take three channels: `classifier.networks.model` repeats a gray image. Both packages are imported when one of their
networks is built, since they take seconds.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

from torch import Tensor, nn

from classifier.errors import UserError
from classifier.networks.names import own_folder

FEW = 8  # names in a message
WITH_AUXILIARIES = ("googlenet", "inception_v3")  # auxiliary outputs of inner layers, which are left out


def torchvision_network(name: str, classes: int, size: int) -> nn.Module:
    """A classification network of torchvision for three channels and images of `size` pixels, height and width."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(_unknown(name, names))
    arguments: dict[str, Any] = {}
    if name.startswith("vit_"):
        arguments = {"image_size": size}  # its position embeddings are parameters
    elif name.startswith("maxvit_"):
        arguments = {"input_size": (size, size)}
    elif name in WITH_AUXILIARIES:
        arguments = {"aux_logits": False, "init_weights": True}
    try:
        network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **arguments)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} does not take images of {size}x{size} pixels: {_line(error)}") from None
    return network


def smallest_size(name: str) -> int | None:
    """Height and width in pixels of the smallest images that a network of torchvision takes; None for others."""
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    smallest: int = max(models.get_model_weights(name).DEFAULT.meta["min_size"])
    return smallest


def timm_network(name: str, classes: int, size: int) -> nn.Module:
    """A network of timm, `timm/NAME`, for three channels and images of `size` pixels, height and width."""
    timm = _timm(name)
    short = name.removeprefix("timm/")
    if not timm.is_model(short):
        raise UserError(_unknown(name, [f"timm/{each}" for each in timm.list_models()]))
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": classes}
    try:
        try:
            network: nn.Module = timm.create_model(short, img_size=size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(short, **arguments)  # a network for images of any size
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} does not take images of {size}x{size} pixels: {_line(error)}") from None
    return network


def _timm(name: str) -> Any:
    """The package. Raises UserError, for the network with this name, if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(f"{name} needs timm: pip install timm") from None
    return timm


def _unknown(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=FEW) or get_close_matches(name, names, n=FEW, cutoff=0.3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    if (own_folder() / f"{name}.py").is_file():
        hint = f"for a function of networks/{name}.py write {name}:function; "
    return (
        f"there is no network {name!r:.80}; {hint}train.network takes lenet5, a name of torchvision.models, "
        "timm/NAME, and module:function of the folder networks/"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True)
class Published:
    """The weights that torchvision publishes and recommends for a network, trained on ImageNet."""

    name: str  # of the file, which contains the beginning of its SHA-256
    base: str  # address, to which the name is added

    @classmethod
    def of(cls, network: str) -> Self | None:
        """None for a network that is not torchvision's."""
        from torchvision import models

        if network not in models.list_models(module=models):
            return None
        weights = models.get_model_weights(network).DEFAULT
        base, _, name = weights.url.rpartition("/")
        return cls(name, f"{base}/")

    @property
    def address(self) -> str:
        return self.base + self.name

    @property
    def checksum(self) -> str:
        """`sha256:` and the first eight hexadecimal digits."""
        return f"sha256:{self.name.rpartition('-')[2].partition('.')[0]}"

    def converted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the names of current networks, without auxiliary outputs."""
        renamed = {
            re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name): value
            for name, value in weights.items()
        }
        return {name: value for name, value in renamed.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}


def statistics_of(network: str) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Mean and std, of pixels in 0..1, that published weights of the network expect; None for a user's network."""
    if network.startswith("timm/"):
        config = _timm(network).get_pretrained_cfg(network.removeprefix("timm/"))
        return (list(config.mean), list(config.std)) if config else (None, None)
    if network in WITH_AUXILIARIES:  # as torchvision's `transform_input` makes of its statistics
        return [0.5] * 3, [0.5] * 3
    from torchvision import models

    if network not in models.list_models(module=models):
        return None, None
    expected = models.get_model_weights(network).DEFAULT.transforms()
    return list(expected.mean), list(expected.std)


def fitting_positions(network: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights; a vision transformer's position embeddings are interpolated to the network's image size."""
    name = "encoder.pos_embedding"
    if not network.startswith("vit_") or name not in weights or weights[name].shape == own[name].shape:
        return weights
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = own["conv_proj.weight"].shape[-1]
    size = round((own[name].shape[1] - 1) ** 0.5) * patch
    interpolated: Mapping[str, Tensor] = interpolate_embeddings(size, patch, OrderedDict(weights))
    return interpolated
