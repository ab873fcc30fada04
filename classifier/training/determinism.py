"""Names layers without a deterministic kernel on CUDA, which are refused unless `train.deterministic` is false."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from classifier.errors import UserError

REFUSED = re.compile(r"(\w+) does not have a deterministic implementation")  # PyTorch's message


@contextmanager
def named_layers(network: nn.Module) -> Iterator[None]:
    """Convert PyTorch's error about an operation without a deterministic kernel to one that names the layers."""
    try:
        yield
    except RuntimeError as error:
        found = REFUSED.search(str(error))
        if not found:
            raise
        raise UserError(
            f"{found[1]} has no deterministic kernel on this GPU; {layers_of(found[1], network)} may need it: choose "
            "another network or image size, or set train.deterministic: false for results that differ from run to run"
        ) from None


def layers_of(operation: str, network: nn.Module) -> str:
    """The layers whose class has the operation's name: AdaptiveAvgPool2d for adaptive_avg_pool2d_backward_cuda."""
    words = operation.lower().replace("_", "")
    named = [
        f"{name} ({type(module).__name__})"
        for name, module in network.named_modules()
        if not list(module.children()) and words.startswith(type(module).__name__.lower().replace("_", ""))
    ]
    return ", ".join(named[:5]) or "a function of the network's forward pass"
