"""Logits for many images, in batches on a device."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classifier.networks.model import Classifier
from classifier.workers import ALONE, Crew

PORTION = 16  # images


def logits_of(classifier: Classifier, images: Tensor) -> Tensor:
    """Raw images `(N, C, H, W) uint8` -> logits `(N, classes)` float32; on a CPU they do not depend on other images.

    PyTorch chooses its kernels by the number of images, and kernels sum in different orders. With a fixed number, an
    image's logits depend neither on its position nor on the other images. So a CPU always computes PORTION images at
    once, and fills up the last portion with black images. The classifier must be in evaluation mode.
    """
    if images.device.type != "cpu":
        logits: Tensor = classifier(images).float()
        return logits
    filled = torch.cat([images, images.new_zeros((-len(images) % PORTION, *images.shape[1:]))])
    return torch.cat([classifier(portion).float() for portion in torch.split(filled, PORTION)])[: len(images)]


class Images(Protocol):
    """Raw images `(N, C, H, W) uint8`, of which slices are taken: a tensor, or files that are read by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@torch.inference_mode()
def probabilities_of(classifier: Classifier, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Raw images `(N, C, H, W)` -> probabilities `(N, classes)`, those of `reports/evaluate/predictions.parquet`.

    The classifier must be in evaluation mode. With one thread, the bits equal those of the stage evaluate.
    """
    device = next(classifier.parameters()).device
    logits = logits_of(classifier, torch.from_numpy(images).to(device)).cpu()
    found: npt.NDArray[np.float32] = logits.double().log_softmax(1).exp().float().numpy()
    return found


@torch.inference_mode()
def predict(
    classifier: Classifier, images: Images, batch_size: int, crew: Crew = ALONE, logits: Tensor | None = None
) -> Tensor:
    """Raw images on the classifier's device -> logits `(N, classes)` float32, same device.

    The processes of a crew share the batches: all of them call this, with `logits` in the memory that they share.
    """
    training = classifier.training
    classifier.eval()
    batches = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    if logits is None:
        logits = torch.cat([classifier(images[batch]).float() for batch in batches])
    else:
        for batch in batches[crew.rank :: crew.size]:
            logits[batch] = classifier(images[batch])
        crew.meet(torch.split(logits, batch_size))
    classifier.train(training)
    return logits
