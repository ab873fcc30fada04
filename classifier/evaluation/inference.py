"""A model's predictions for a split. Images are read, corrupted and released batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from classifier.data.dataset import Split
from classifier.evaluation.corruptions import corrupt
from classifier.evaluation.metrics import Predictions
from classifier.networks.inference import PORTION, logits_of
from classifier.networks.model import Classifier
from classifier.workers import Crew, threads

LARGEST = 1 << 22  # values of one batch's images, so that networks of any image size fit into memory

Condition = tuple[str, int]  # kind and strength of a corruption (`classifier.evaluation.corruptions`)


@dataclass(frozen=True)
class Inference:
    """How images become predictions.

    With `processes`, each with one thread, one of them computes a batch: the bits do not depend on their number. With
    0, this process computes all batches, on any device and with all its threads.
    """

    device: torch.device
    batch_size: int  # at most; a batch of large images is smaller
    processes: int = 0

    def predictions(self, classifier: Classifier, split: Split, class_names: list[str]) -> Predictions:
        """The predictions for all images of a split."""
        model, batches = classifier.to(self.device).eval(), self._batches(split)

        def job(rows: range) -> Tensor:
            return logits_of(model, self._images(split, rows))

        logits = self._all([partial(job, rows) for rows in batches], [len(rows) for rows in batches], len(class_names))
        return Predictions(split.labels, logits.double().log_softmax(1).numpy(), class_names)

    def right(self, classifier: Classifier, split: Split, conditions: Sequence[Condition]) -> np.ndarray:
        """`(conditions, N) bool`: whether the predicted class is the label, for the images under each condition."""
        model = classifier.to(self.device).eval()

        def job(condition: Condition, rows: range) -> Tensor:
            predicted = logits_of(model, self._images(split, rows, condition)).argmax(1).cpu()
            right: Tensor = predicted == torch.from_numpy(split.labels[rows.start : rows.stop])
            return right[:, None]

        if not conditions:
            return np.zeros((0, len(split)), dtype=bool)
        cells = [(condition, rows) for condition in conditions for rows in self._batches(split)]
        found = self._all([partial(job, *cell) for cell in cells], [len(rows) for _, rows in cells], 1)
        return np.asarray(found.view(len(conditions), len(split)) > 0)

    def _batches(self, split: Split) -> list[range]:
        values = split.take(np.arange(min(1, len(split)))).size  # of one image
        most = LARGEST // max(1, values)
        whole = most - most % PORTION  # a CPU fills up the last portion of a batch
        size = max(1, min(self.batch_size, whole or most))
        return [range(start, min(start + size, len(split))) for start in range(0, len(split), size)]

    def _images(self, split: Split, rows: range, condition: Condition | None = None) -> Tensor:
        images = split.take(np.arange(rows.start, rows.stop))
        return torch.from_numpy(corrupt(images, *condition) if condition else images).to(self.device)

    @torch.inference_mode()
    def _all(self, jobs: Sequence[Callable[[], Tensor]], rows: Sequence[int], width: int) -> Tensor:
        """The rows of all jobs, concatenated: `(sum of rows, width) float32`."""
        crew = Crew(max(1, min(self.processes, len(jobs))))
        found = crew.share(sum(rows), width)
        places = torch.split(found, list(rows))

        def work() -> None:
            for number in range(crew.rank, len(jobs), crew.size):
                places[number].copy_(jobs[number]())
            crew.meet(places)

        with threads(1 if self.processes else torch.get_num_threads()), crew.working(work):
            work()
        return found
