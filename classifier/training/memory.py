"""Whether a batch fits into the free memory: checked before training starts, and what to do when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from classifier.device import free_memory
from classifier.errors import UserError, lacks_memory
from classifier.networks.layers import Costs
from classifier.params import TrainParams
from classifier.training.parts import Computation, parts_of

COPIES = {"sgd": 3, "adamw": 4, "muon": 3}  # of the weights: themselves, their gradients, the optimizer's state
MOST_PARTS = 1024  # that params allow


def check_batch(params: TrainParams, costs: Costs, computation: Computation, device: torch.device) -> None:
    """Raises UserError, with a batch size and a number of parts that fit, if a batch needs more than is free.

    The estimate is a lower bound: the weights, and what layers keep of each image for the backward pass.
    """
    free, image = free_memory(device), costs.activations_bytes / (2 if params.precision == "bfloat16" else 1)

    def needed(size: int, parts: int) -> float:
        processes = min(computation.processes, parts)
        copies = processes * COPIES[params.optimizer] + (2 * parts if parts > 1 else 0)
        return copies * costs.weights_bytes + processes * -(-size // parts) * image

    if needed(params.batch_size, computation.parts) <= free:
        return
    sizes = (size for size in range(params.batch_size - 1, 0, -1) if needed(size, computation.parts) <= free)
    more = range(computation.parts + 1, _most_parts(params) + 1)
    numbers = (parts for parts in more if needed(params.batch_size, parts) <= free)
    size, parts = next(sizes, None), next(numbers, None)
    raise UserError(
        f"train.batch_size: {params.batch_size} needs at least {_gib(needed(params.batch_size, computation.parts))}, "
        f"{_gib(free)} are free: {_remedies(size, parts)}"
    )


@contextmanager
def naming_half(params: TrainParams, computation: Computation) -> Iterator[None]:
    """Note, when memory runs out, how to halve the images that are computed at a time."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if lacks_memory(error):
            parts = 2 * computation.parts
            error.add_note(_remedies(params.batch_size // 2, parts if parts <= _most_parts(params) else None))
        raise


def _most_parts(params: TrainParams) -> int:
    return min(MOST_PARTS, parts_of(params.batch_size, MOST_PARTS))


def _remedies(size: int | None, parts: int | None) -> str:
    """Advice to use at most this batch size or at least as many parts, or neither."""
    remedies = [
        *([f"train.batch_size to {size} or less"] if size else []),
        *([f"train.parts to {parts} (the same batch, computed in smaller parts)"] if parts else []),
    ]
    smaller = ["normalize.image_size to fewer pixels", "train.network to a smaller one"]
    return f"set {', or '.join(remedies or smaller)}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
