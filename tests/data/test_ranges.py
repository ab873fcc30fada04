"""By what an image is told from those of the training."""

import numpy as np
import pytest

from classifier.data.ranges import NEGATIVE, far, measure, unlike, usual
from tests.samples import all_digits

MARGIN = 2


@pytest.fixture(scope="module")
def digits():
    return all_digits().images


def test_measures_are_those_of_the_pixels_inside_the_margin():
    image = np.zeros((1, 1, 6, 6), np.uint8)
    image[0, 0, 1:5, 1:5] = 255  # all that a margin of 1 leaves
    image[0, 0, 2:4, 2:4] = 0
    found = {name: value.tolist() for name, value in measure(image, 1).items()}
    assert found == {"brightness": [0.75], "contrast": [pytest.approx(np.sqrt(0.75 * 0.25))], "border": [1.0]}
    colour = np.zeros((1, 3, 2, 2), np.uint8)
    colour[0, 0] = 51
    assert measure(colour, 0)["colour"].tolist() == [0.2]


def test_the_ranges_hold_all_but_the_rare_images():
    images = np.repeat(np.arange(1000, dtype=np.int64) // 4, 16).astype(np.uint8).reshape(1000, 1, 4, 4)
    found = usual(images, 0)
    assert found["brightness"] == found["border"] == [0.0, round(249 / 255, 4)]
    images[500], images[501:503] = 255, 254
    assert usual(images, 0)["brightness"] == [0.0, round(254 / 255, 4)]  # one of 1,000 is rare


def test_the_ranges_of_chunks_are_those_of_all(digits, monkeypatch):
    whole = usual(digits, MARGIN)
    monkeypatch.setattr("classifier.data.ranges.CHUNK", 7 * 1024)
    assert usual(digits, MARGIN) == whole


def test_digits_of_the_test_split_are_like_those_of_the_training(digits):
    ranges = usual(digits[:1400], MARGIN)
    assert not [text for image in digits[1400:] if (text := unlike(image, ranges, MARGIN))]


def test_a_black_seven_on_white_paper_is_told_with_its_remedy(digits):
    ranges = usual(digits, MARGIN)
    seven = digits[7].copy()
    seven[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = 255 - seven[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    told = unlike(seven, ranges, MARGIN)
    assert told is not None
    assert told.startswith("unlike the training images: brighter (0.")
    assert " and brighter at the border (0." in told
    assert told.endswith(NEGATIVE)


def test_a_photo_and_an_empty_page_are_told_without_it(digits):
    ranges = usual(digits, MARGIN)
    photo = np.random.default_rng(0).integers(60, 200, (1, 32, 32), dtype=np.uint8)
    for image in (photo, np.full((1, 32, 32), 128, np.uint8)):
        told = unlike(image, ranges, MARGIN)
        assert told is not None
        assert NEGATIVE not in told


def test_several_images_are_told_apart_as_one_is(digits):
    ranges = usual(digits[:1400], MARGIN)
    images = np.concatenate([digits[:50], 255 - digits[:50], digits[:50] // 3])
    alone = [unlike(image, ranges, MARGIN) is not None for image in images]
    assert set(alone) == {False, True}
    assert far(images, ranges, MARGIN).tolist() == alone
    assert far(images[:0], ranges, MARGIN).tolist() == []
