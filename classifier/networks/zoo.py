"""The networks of torchvision.models and of timm, without weights and with a head for the number of classes.

They take three channels: `classifier.networks.model` repeats a gray image. Both packages are imported when one of their
networks is built, since they take seconds.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from classifier.errors import UserError

FEW = 8  # names in a message


def torchvision_network(name: str, classes: int, size: int) -> nn.Module:
    """A classification network of torchvision for three channels and images of `size` pixels, height and width."""
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(_unknown(name, names))
    arguments: dict[str, Any] = {}
    if name.startswith("vit_"):
        arguments = {"image_size": size}  # its positions are parameters
    elif name.startswith("maxvit_"):
        arguments = {"input_size": (size, size)}
    elif name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True}  # without their second and third output
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
    try:
        import timm
    except ImportError:
        raise UserError(f"{name} needs timm: pip install timm") from None
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
            network = timm.create_model(short, **arguments)  # one for images of any size
    except (ValueError, AssertionError) as error:
        raise UserError(f"{name} does not take images of {size}x{size} pixels: {_line(error)}") from None
    return network


def _unknown(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=FEW) or get_close_matches(name, names, n=FEW, cutoff=0.3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return (
        f"there is no network {name!r:.80}; {hint}train.network takes lenet5, a name of torchvision.models, "
        "timm/NAME, and module:function of the folder networks/"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
