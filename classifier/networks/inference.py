"""Logits for many images, in batches on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from classifier.networks.model import Classifier
from classifier.workers import ALONE, Crew, threads


@torch.inference_mode()
def predict(
    classifier: Classifier, images: Tensor, batch_size: int, crew: Crew = ALONE, logits: Tensor | None = None
) -> Tensor:
    """Raw images `(N, C, 32, 32) uint8` on the classifier's device -> logits `(N, classes)` float32, same device.

    The processes of a crew share the batches: all of them call this, with `logits` in the memory that they share.
    """
    training = classifier.training
    classifier.eval()
    batches = torch.split(images, batch_size)
    if logits is None:
        logits = torch.cat([classifier(batch).float() for batch in batches])
    else:
        places = torch.split(logits, batch_size)
        for number in range(crew.rank, len(batches), crew.size):
            places[number].copy_(classifier(batches[number]))
        crew.meet(places)
    classifier.train(training)
    return logits


def predict_in_parts(classifier: Classifier, images: Tensor, batch_size: int, classes: int) -> Tensor:
    """`predict` on a CPU, where a process per core shares the batches: its bits do not depend on their number."""
    crew = Crew(min(torch.get_num_threads(), -(-len(images) // batch_size)))
    logits = crew.share(len(images), classes)

    def work() -> None:
        predict(classifier, images, batch_size, crew, logits)

    with threads(1), crew.working(work):
        work()
    return logits
