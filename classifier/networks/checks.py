"""Checks of a network with a few random images before it is trained.

An error inside a user's network keeps its traceback, which shows the line.
"""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from classifier.errors import UserError, lacks_memory
from classifier.networks.model import Classifier
from classifier.networks.names import is_own
from classifier.networks.registry import NetworkSpec, build
from classifier.networks.zoo import smallest_size

IMAGES = 2  # batch normalization needs more than one value


def check_network(classifier: Classifier, spec: NetworkSpec) -> None:
    """Raises UserError unless the network can be trained, saved, and trained again with the same result."""
    network, name = classifier.network, spec.architecture
    if other := [key for key, value in network.state_dict().items() if not isinstance(value, Tensor)]:
        raise UserError(f"the network {name} keeps {other[0]}, which is not a tensor: make it a buffer")
    if other := [f"{key} {each.dtype}" for key, each in network.named_parameters() if each.dtype != torch.float32]:
        raise UserError(f"the network {name} has the parameter {other[0]}: allowed is torch.float32")
    logits = _logits(classifier, spec)
    expected = (IMAGES, len(spec.class_names))
    if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the network {name} gives {found} for {IMAGES} images: allowed are logits {expected} of floating-point "
            "numbers, one for each image and class"
        )
    if not logits.requires_grad:
        raise UserError(f"the network {name} gives logits without gradients: none of its parameters can be trained")
    if not logits.isfinite().all():
        raise UserError(f"the network {name} gives NaN or Inf for random images before it is trained")
    again = _logits(classifier, spec)
    assert isinstance(again, Tensor)
    if not torch.equal(logits, again):
        raise UserError(
            f"the network {name} gives different logits for the same images and the same seed, so that training could "
            "not be resumed or reproduced: draw random numbers with torch only, not with numpy, random or the time, "
            "and keep state in buffers"
        )
    if is_own(name):
        first, second = (build(spec).network.state_dict().values() for _ in range(2))
        if not all(map(torch.equal, first, second)):
            raise UserError(
                f"the network {name} begins with different weights for the same seed: draw them with torch, not with "
                "numpy or random"
            )


def _logits(classifier: Classifier, spec: NetworkSpec) -> object:
    """The network's output in training mode, for fixed images and a fixed seed. Leaves its buffers unchanged."""
    shape, generator = (IMAGES, spec.channels, spec.size, spec.size), torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in classifier.network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            logits: object = classifier.train()(images)
        except Exception as error:
            if is_own(spec.architecture):
                error.add_note(f"The network {spec.architecture} raises this for images {shape}.")
            elif isinstance(error, RuntimeError | ValueError | AssertionError) and not lacks_memory(error):
                raise UserError(_does_not_take(spec, error)) from None
            raise
    with torch.no_grad():
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer.copy_(before))  # the forward pass may have replaced it
    return logits


def _does_not_take(spec: NetworkSpec, error: Exception) -> str:
    reason = " ".join(str(error).split())
    smallest = smallest_size(spec.architecture)
    hint = f"at least {smallest} pixels" if smallest and smallest > spec.size else "another size"
    return (
        f"{spec.architecture} does not take images of {spec.size}x{spec.size} pixels ({reason:.200}): "
        f"set normalize.image_size to {hint}"
    )


def check_last_batch(classifier: Classifier, spec: NetworkSpec, images: int, batch_size: int) -> None:
    """Raises UserError if an epoch has a batch of a single image and the network does not take one.

    Batch normalization cannot compute a variance from a single value.
    """
    if batch_size > 1 and images % batch_size != 1:
        return
    with torch.random.fork_rng(devices=[]):
        try:
            classifier.train()(torch.zeros(1, spec.channels, spec.size, spec.size, dtype=torch.uint8))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            allowed = next(size for size in count(batch_size + 1) if images % size != 1)
            raise UserError(
                f"train.batch_size: {batch_size} leaves a batch of a single one of the {images} training images, "
                f"too few for batch normalization; allowed is {allowed}, or another size that leaves no single image"
            ) from None
