"""`torch.compile` of the network on a GPU: fewer, generated kernels.

The compiler stores the kernels in its own cache on this machine, so that the next training starts in a few seconds.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

from classifier.errors import UserError
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
        self.began: float | None = None
        self.told = False

    def __call__(self, images: Tensor) -> Tensor:
        """Normalized images `(N, C, H, W)` -> logits `(N, classes)`. Raises UserError if the compiler fails."""
        if len(images) not in self.full:
            small: Tensor = self.network(images)
            return small
        self.began = self.began or time.monotonic()
        try:
            logits: Tensor = self.generated(images)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException  # takes over a second to import, which compiling needs

            if not isinstance(error, TorchDynamoException):
                raise
            reason = " ".join(str(error).split())
            raise UserError(f"train.compile: torch.compile failed ({reason:.300}): set it to false") from error
        return logits

    def tell(self) -> None:
        """Print how long compilation took. Call this after a step: the backward pass is compiled when it is called."""
        if self.began and not self.told:
            self.told = True
            print(f"torch.compile took {time.monotonic() - self.began:.0f} s", file=sys.stderr, flush=True)
