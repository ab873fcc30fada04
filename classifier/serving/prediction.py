"""Predicts image files with PyTorch, with the same bits as in `reports/evaluate/predictions.parquet`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from classifier.data.ranges import far, unlike
from classifier.networks.inference import probabilities_of
from classifier.networks.model import Classifier
from classifier.networks.model_dir import ModelMeta, read_model, read_model_meta
from classifier.serving.files import Answer, Named, Problem, decoded
from classifier.serving.workers import cores
from classifier.workers import threads


class Predictor:
    """A model directory's classifier on a device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.meta: ModelMeta = read_model_meta(folder)
        self.classifier: Classifier = read_model(folder).to(device)
        self.device = device

    def answers(self, files: Sequence[Named], *, invert: bool = False) -> Iterator[Answer | Problem]:
        """Predict each file, chunk by chunk, while other processes decode the next chunks."""
        preprocessing = self.meta.preprocessing
        if invert:
            preprocessing = preprocessing.model_copy(update={"invert": not preprocessing.invert})
        # Like evaluate's processes: the order of sums depends on the number of threads, too.
        with threads(1) if self.device.type == "cpu" else nullcontext():
            for chunk in decoded(files, preprocessing, cores()):
                yield from chunk.problems
                probabilities = probabilities_of(self.classifier, chunk.images)
                ranges, margin = self.meta.ranges or {}, preprocessing.margin
                rows = zip(chunk.files, chunk.images, probabilities, far(chunk.images, ranges, margin), strict=True)
                for file, image, row, warned in rows:
                    yield Answer(file, row, unlike(image, ranges, margin) if warned else None)
