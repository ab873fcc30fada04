"""Logits and hits of a split, in batches, in any number of processes."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from classifier.data.dataset import Split
from classifier.evaluation import inference
from classifier.evaluation.corruptions import corrupt
from classifier.evaluation.inference import Inference
from classifier.networks.model import Classifier, LeNet5
from classifier.workers import threads
from tests.evaluation.samples import images_of
from tests.samples import DIGITS, digits_split

CPU = torch.device("cpu")


class Brightest(torch.nn.Module):
    """A known answer: logit k is the mean of the k-th quarter of the rows, so the label is the brightest quarter."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.mean(dim=(1, 2, 3)) for part in images.chunk(4, dim=2)], dim=1)


def classifier() -> Classifier:
    return Classifier(Brightest(), [0.0], [1.0])


def split_of(n: int, channels: int = 1, size: int = 32) -> Split:
    images = images_of(n, channels, size)
    labels = images.reshape(n, channels, 4, size // 4, size).mean(axis=(1, 3, 4)).argmax(axis=1)
    return Split(images, labels.astype(np.int64))


@pytest.mark.parametrize(("n", "batch_size"), [(47, 10), (47, 47), (47, 100), (1, 10)])
@pytest.mark.parametrize("processes", [0, 1, 3])
def test_every_image_is_predicted_once_the_ragged_last_batch_included(n: int, batch_size: int, processes: int) -> None:
    split = split_of(n)
    found = Inference(CPU, batch_size, processes).predictions(classifier(), split, list("abcd"))
    assert found.right.all()
    expected = classifier()(torch.from_numpy(split.images)).double().log_softmax(1).detach().numpy()
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-6)


def test_logits_have_the_same_bits_whoever_computes_them() -> None:
    torch.manual_seed(0)
    network, split = Classifier(LeNet5(1, 10), [0.24], [0.33]), digits_split(95)
    with threads(1):
        alone, *others = (
            Inference(CPU, 20, processes).predictions(network, split, DIGITS).log_probabilities
            for processes in (0, 1, 2, 3)
        )
    assert all(np.array_equal(other, alone) for other in others)


@pytest.mark.parametrize("processes", [0, 2])
def test_hits_under_each_condition_are_those_of_the_corrupted_images(processes: int) -> None:
    split, conditions = split_of(47, 3), [("occlusion", 5), ("brightness", 5), ("noise", 1)]
    found = Inference(CPU, 10, processes).right(classifier(), split, conditions)
    assert found.shape == (3, 47)
    for row, condition in zip(found, conditions, strict=True):
        corrupted = Split(corrupt(split.images, *condition), split.labels)
        expected = Inference(CPU, 10).predictions(classifier(), corrupted, list("abcd")).right
        assert row.tolist() == expected.tolist()
    assert not found[0].all()
    assert found[2].all()


def test_without_conditions_nothing_is_computed() -> None:
    assert Inference(CPU, 10, 2).right(classifier(), split_of(3), []).shape == (0, 3)


def test_images_are_taken_batch_by_batch_and_large_ones_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Split):
        taken: ClassVar[list[int]] = []

        @property
        def images(self) -> np.ndarray:
            raise AssertionError("all images at once may be more than fit into memory")

        def take(self, indices: np.ndarray) -> np.ndarray:
            self.taken.append(len(indices))
            return self._images[indices]

    split = Counted(*vars(split_of(47)).values())
    Inference(CPU, 20).predictions(classifier(), split, list("abcd"))
    assert max(split.taken) == 20
    split.taken.clear()
    for largest, expected in ((7, 7), (16, 16), (19, 16), (99, 20)):
        monkeypatch.setattr(inference, "LARGEST", largest * 32 * 32)
        assert Inference(CPU, 20).predictions(classifier(), split, list("abcd")).right.all()
        assert Inference(CPU, 20).right(classifier(), split, [("contrast", 1)]).all()
        assert max(split.taken) == expected
        split.taken.clear()


def test_the_model_is_in_evaluation_mode() -> None:
    model = Classifier(torch.nn.Sequential(torch.nn.Dropout(0.9), Brightest()), [0.0], [1.0]).train()
    assert Inference(CPU, 10).predictions(model, split_of(47), list("abcd")).right.all()
