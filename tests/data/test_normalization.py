from __future__ import annotations

import numpy as np
import pytest

from classifier.data.decoding import facts_of
from classifier.data.normalization import canonical_images, counts, make_splits, statistics
from classifier.params import NormalizeParams
from tests.samples import file_params

GENERATOR = np.random.default_rng(0)
NAMES = ("cat", "dog", "owl")


def params(**changes) -> NormalizeParams:
    values = {"seed": 0, "validation_fraction": 0.25, "test_fraction": 0.2, "mean": None, "std": None}
    return NormalizeParams.model_validate(file_params().normalize.model_dump() | values | changes)


def labelled(labels, numbered=True):
    """28x28 images, each holding its own number in its first two pixels."""
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    return images, np.array(labels, np.uint8)


def numbers(split):
    return (split.images[:, 0, 2, 2].astype(int) * 256 + split.images[:, 0, 2, 3]).tolist()


def test_28x28_is_padded_by_two_zeros_on_every_side():
    images = GENERATOR.integers(1, 256, (3, 28, 28), np.uint8)
    padded = canonical_images(images)
    assert (padded.shape, padded.dtype) == ((3, 1, 32, 32), np.uint8)
    assert np.array_equal(padded[:, 0, 2:30, 2:30], images)
    assert padded.astype(int).sum() == images.astype(int).sum()


def test_8x8_is_scaled_to_255_resized_by_a_smooth_filter_and_padded():
    flat = canonical_images(np.array([0, 1, 8, 16], np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8))
    assert (flat.shape, flat.dtype) == ((4, 1, 32, 32), np.uint8)
    assert [np.unique(image[0, 2:30, 2:30]).tolist() for image in flat] == [[0], [16], [128], [255]]
    assert flat[3].astype(int).sum() == 28 * 28 * 255
    half = np.zeros((1, 8, 8), np.uint8)
    half[:, :, 4:] = 16
    row = canonical_images(half)[0, 0, 16, 2:30].astype(int)
    assert len(np.unique(row)) > 4, "an edge is smoothed, not copied in blocks"
    assert np.array_equal(row, 255 - row[::-1])
    assert (row[:10].max(), row[-10:].min()) == (0, 255)


def test_cifar_stays_as_it_is():
    images = GENERATOR.integers(0, 256, (2, 3, 32, 32), np.uint8)
    assert np.array_equal(canonical_images(images), images)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"images of shape \(27, 28\): allowed are \(8, 8\)"):
        canonical_images(np.zeros((1, 27, 28), np.uint8))


def test_the_sources_own_test_split_stays_whole_and_in_order():
    training, test = labelled([0, 1, 2] * 40), labelled([2, 2, 1, 0, 0])
    splits = make_splits(training, test, NAMES, params())
    assert numbers(splits["test"]) == [0, 1, 2, 3, 4]
    assert splits["test"].labels.tolist() == [2, 2, 1, 0, 0]
    assert splits["test"].labels.dtype == np.int64
    assert counts(splits["validation"].labels, NAMES) == [10, 10, 10]
    assert counts(splits["train"].labels, NAMES) == [30, 30, 30]


def test_without_one_test_and_validation_are_held_out_by_class():
    labels = [0] * 100 + [1] * 50 + [2] * 10
    splits = make_splits(labelled(labels), None, NAMES, params())
    assert list(splits) == ["train", "validation", "test"]
    assert counts(splits["test"].labels, NAMES) == [20, 10, 2]
    assert counts(splits["validation"].labels, NAMES) == [20, 10, 2]
    assert counts(splits["train"].labels, NAMES) == [60, 30, 6]
    parts = {name: numbers(split) for name, split in splits.items()}
    assert sorted(number for part in parts.values() for number in part) == list(range(160)), (
        "every image is in exactly one split"
    )
    for name, part in parts.items():
        assert part == sorted(part)
        assert splits[name].labels.tolist() == [labels[number] for number in part]
        assert part != list(range(len(part)))


def test_the_split_follows_the_seed():
    source = labelled([0, 1, 2] * 40)
    first, again, other = (make_splits(source, None, NAMES, params(seed=seed)) for seed in (1, 1, 2))
    for name in first:
        assert numbers(first[name]) == numbers(again[name])
        assert numbers(first[name]) != numbers(other[name])


def test_the_split_is_this_one():
    """Other numbers mean other splits from the same seed: every result measured so far is void."""
    splits = make_splits(labelled([0, 1, 2] * 10), None, NAMES, params())
    assert numbers(splits["test"]) == [2, 4, 5, 6, 9, 10]
    assert numbers(splits["validation"]) == [12, 14, 16, 21, 22, 29]


def test_no_validation_split_is_an_empty_one():
    splits = make_splits(labelled([0, 1, 2]), labelled([0]), NAMES, params(validation_fraction=0.0))
    assert splits["validation"].images.shape == (0, 1, 32, 32)
    assert splits["validation"].labels.shape == (0,)
    assert numbers(splits["train"]) == [0, 1, 2]


def test_a_small_fraction_still_holds_out_one_of_every_class():
    splits = make_splits(labelled([0, 1, 2] * 3), None, NAMES, params(test_fraction=0.01, validation_fraction=0.01))
    assert counts(splits["test"].labels, NAMES) == counts(splits["validation"].labels, NAMES) == [1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "changes", "problem"),
    [
        ([0, 0, 2, 2], {}, "class 'dog' has 0 images: 1 to hold out"),
        ([0, 0, 2, 2], {"validation_fraction": 0.0}, "class 'dog' has 0 images: 0 to hold out"),
        ([0, 0, 1, 2, 2], {}, "class 'dog' has 1 image: 1 to hold out"),
        ([0, 1, 2] * 10, {"validation_fraction": 0.99}, "class 'cat' has 10 images: 10 to hold out.* lower normalize"),
    ],
)
def test_a_class_without_training_images_is_named(labels, changes, problem):
    with pytest.raises(ValueError, match=problem):
        make_splits(labelled(labels), labelled([0]), NAMES, params(**changes))


def computed(images, **changes):
    sums = facts_of(images, range(len(images)), 0).sums.sum(0)
    return statistics(sums, images[:, 0].size, params(**changes))


def test_statistics_are_those_of_the_pixels_per_channel():
    images = GENERATOR.integers(0, 256, (5000, 3, 32, 32), np.uint8)
    images[:, 1] //= 2
    mean, std = computed(images)
    scaled = images[:, :, :, :] / 255
    assert mean == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(scaled.std(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert computed(images[::-1]) == (mean, std)


def test_statistics_of_params_replace_the_computed_ones():
    images = GENERATOR.integers(0, 256, (10, 1, 32, 32), np.uint8)
    mean, std = computed(images)
    assert computed(images, mean=[0.5], std=[1.0]) == ([0.5], [1.0])
    assert computed(images, mean=[0.5]) == ([0.5], std)
    assert computed(images, std=[1.0]) == (mean, [1.0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mean": [0.5], "std": [1.0]}, r"normalize\.mean is \[0\.5\] and normalize\.std is \[1\.0\]"),
        ({"mean": [0.5, 0.5]}, r"normalize\.mean is \[0\.5, 0\.5\]"),
        ({"std": [1.0] * 4}, r"normalize\.std is \[1\.0, 1\.0, 1\.0, 1\.0\]"),
    ],
)
def test_statistics_of_another_number_of_channels_are_named(changes, named):
    images = np.zeros((1, 3, 32, 32), np.uint8)
    with pytest.raises(ValueError, match=f"^{named}: allowed is null, or one number per .* images, which have 3"):
        computed(images, **changes)


def test_equal_pixels_have_no_standard_deviation():
    images = np.full((2, 3, 32, 32), 7, np.uint8)
    images[0, 0, 0, 0] = 8
    with pytest.raises(ValueError, match="all pixels of channel 1 of the training images are equal"):
        computed(images)
    assert computed(images, std=[1.0] * 3)[1] == [1.0] * 3
