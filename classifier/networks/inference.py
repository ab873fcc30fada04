"""Logits for many images, in batches on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from classifier.networks.model import Classifier


@torch.inference_mode()
def predict(classifier: Classifier, images: Tensor, batch_size: int) -> Tensor:
    """Raw images `(N, C, 32, 32) uint8` on the classifier's device -> logits `(N, classes)` float32, same device."""
    training = classifier.training
    classifier.eval()
    logits = [classifier(batch).float() for batch in torch.split(images, batch_size)]
    classifier.train(training)
    return torch.cat(logits)
