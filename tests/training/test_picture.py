"""The picture of an augmented batch."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from classifier.data.dataset import Split
from classifier.networks.model import Classifier, LeNet5
from classifier.training.picture import augmented_batch
from classifier.training.steps import plan_epoch
from tests.samples import digits_split, train_params

DIGITS = digits_split(100)


def picture(split=DIGITS, channels=1, parts=1, **values):
    classifier = Classifier(LeNet5(channels, 10), [0.24] * channels, [0.33] * channels)
    content = augmented_batch(classifier, split, train_params(**values), parts)
    return content and np.asarray(Image.open(io.BytesIO(content)))


def test_it_shows_the_first_images_of_the_first_epoch_as_they_are_trained():
    values = {"batch_size": 12, "flip": 1.0}
    shown = picture(**values)
    assert shown.shape == (2 * 66, 10 * 66)
    order, _ = plan_epoch(torch.from_numpy(DIGITS.labels), 32, 1, 0, train_params(**values))
    for number, index in enumerate(order[:12].tolist()):
        top, left = number // 10 * 66 + 1, number % 10 * 66 + 1
        tile = shown[top : top + 64 : 2, left : left + 64 : 2]
        assert np.array_equal(tile, DIGITS.images[index, 0, :, ::-1])
    assert (shown[66:, 2 * 66 :] == 255).all()


def test_erased_and_mixed_images_are_shown_so_and_a_batch_of_colours_in_colour():
    colours = Split(DIGITS.images.repeat(3, axis=1), DIGITS.labels)
    erased = picture(colours, channels=3, erase=1.0)
    assert erased.shape == (3 * 66, 10 * 66, 3)
    assert (erased == round(0.24 * 255)).mean() > 0.02
    assert not np.array_equal(picture(mixup=1.0), picture(flip=1e-9))


@pytest.mark.parametrize(("parts", "partners"), [(1, [7, 0, 1, 2, 3, 4, 5, 6]), (2, [3, 0, 1, 2, 7, 4, 5, 6])])
def test_an_image_is_shown_mixed_with_its_partner_in_training(parts, partners):
    """The one before it in its part of the batch."""
    values = {"batch_size": 8, "mixup": 1.0}
    shown = picture(parts=parts, **values)
    order, draws = plan_epoch(torch.from_numpy(DIGITS.labels), 32, 1, 0, train_params(**values))
    images = DIGITS.images[order[:8].numpy(), 0].astype(float)
    for number, (partner, share) in enumerate(zip(partners, draws["blend"].tolist(), strict=False)):
        tile = shown[1:65:2, number * 66 + 1 : number * 66 + 65 : 2]
        assert np.abs(tile - share * images[number] - (1 - share) * images[partner]).max() < 0.51


def test_equal_params_give_equal_bytes_and_nothing_augmented_gives_none():
    classifier = Classifier(LeNet5(1, 10), [0.24], [0.33])
    params = train_params(shift=2, policy="trivialaugment")
    assert augmented_batch(classifier, DIGITS, params, 2) == augmented_batch(classifier, DIGITS, params, 2)
    assert picture() is None
