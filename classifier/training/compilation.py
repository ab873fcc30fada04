"""`torch.compile` of the network on a GPU: fewer, generated kernels.

The compiler stores the kernels in its own cache on this machine, so that the next training starts in a few seconds.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from classifier.params import TrainParams


class Compiled:
    """A network whose kernels are generated at the first full batch. It is called as the network is.

    Each number of images is compiled for itself. The smaller batch at the end of an epoch is not worth it, and goes
    through the network's own kernels.
    """

    def __init__(self, network: nn.Module, params: TrainParams, parts: int) -> None:
        self.network = network
        self.generated = torch.compile(network, dynamic=False)
        self.full = {params.batch_size // parts, -(-params.batch_size // parts)}  # images of a full batch's parts
        self.seconds: float | None = None  # of the first call

    def __call__(self, images: Tensor) -> Tensor:
        """Normalized images `(N, C, H, W)` -> logits `(N, classes)`."""
        if len(images) not in self.full:
            small: Tensor = self.network(images)
            return small
        began = time.monotonic()
        logits: Tensor = self.generated(images)
        if self.seconds is None:
            self.seconds = time.monotonic() - began
            print(f"torch.compile took {self.seconds:.0f} s", file=sys.stderr, flush=True)
        return logits
