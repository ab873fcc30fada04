from __future__ import annotations

import numpy as np
import pytest

from classifier.data.dataset import SPLITS
from classifier.data.splits import assign_splits
from classifier.params import NormalizeParams
from tests.samples import file_params

NAMES = ("cat", "dog", "owl")


def params(**changes) -> NormalizeParams:
    return NormalizeParams.model_validate(
        file_params().normalize.model_dump() | {"validation_fraction": 0.25, "test_fraction": 0.2} | changes
    )


def split(labels, changes=None, **options) -> list[str]:
    numbers = assign_splits(np.array(labels, np.int64), NAMES, params(**(changes or {})), **options)
    assert numbers.dtype == np.int8
    return [SPLITS[number] for number in numbers]


def per_class(labels, splits) -> dict[str, list[int]]:
    return {
        name: [sum(pair == (label, name) for pair in zip(labels, splits, strict=True)) for label in range(3)]
        for name in SPLITS
    }


def test_without_given_splits_both_are_held_out_by_class():
    labels = [0] * 100 + [1] * 50 + [2] * 10
    assert per_class(labels, split(labels)) == {"train": [60, 30, 6], "validation": [20, 10, 2], "test": [20, 10, 2]}


def test_the_splits_are_these():
    """Other numbers mean other splits from the same seed: every result measured so far is void."""
    splits = split([0, 1, 2] * 10)
    assert [index for index, name in enumerate(splits) if name == "test"] == [2, 4, 5, 6, 9, 10]
    assert [index for index, name in enumerate(splits) if name == "validation"] == [12, 14, 16, 21, 22, 29]
    assert split([0, 1, 2] * 10, {"seed": 1}) != splits


@pytest.mark.parametrize("missing", ["validation", "test"])
def test_a_missing_split_is_taken_from_the_training_images_alone(missing):
    labels = [0, 1, 2] * 40
    kept = "test" if missing == "validation" else "validation"
    given = [kept if index >= 90 else "train" for index in range(120)]
    splits = split(labels, given=given)
    assert splits[90:] == [kept] * 30
    assert set(splits[:90]) == {"train", missing}
    count = 8 if missing == "validation" else 6  # a quarter or a fifth of 30, rounded
    assert per_class(labels, splits)[missing] == [count] * 3


def test_all_given_splits_stay():
    given = ["train", "validation", "test"] * 9
    assert split([0] * 9 + [1] * 9 + [2] * 9, given=given) == given


def test_a_fraction_of_0_makes_no_validation_split():
    assert set(split([0, 1, 2] * 10, {"validation_fraction": 0.0})) == {"train", "test"}


def test_splits_for_some_images_alone_are_refused():
    with pytest.raises(ValueError, match="1 of 30 images have no split: allowed is a split for all, or none"):
        split([0, 1, 2] * 10, given=["train"] * 29 + [None])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mixed", [False, True])
def test_a_group_is_never_divided_and_every_class_is_everywhere(seed, mixed):
    """Clips of one class, or patients with images of several classes, of 1 to 9 images."""
    generator = np.random.default_rng(seed)
    groups, labels = [], []
    for number in range(150):
        for _ in range(generator.integers(1, 10)):
            groups.append(f"g{number}")
            labels.append(int(generator.integers(3)) if mixed else number % 3)
    splits = split(labels, {"seed": seed}, groups=groups)
    found: dict[str, set[str]] = {}
    for group, name in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(name)
    assert all(len(names) == 1 for names in found.values())
    counts, totals = per_class(labels, splits), np.bincount(labels)
    assert np.abs(np.array(counts["test"]) - totals * 0.2).max() <= 9, "off by a group at most"
    assert np.abs(np.array(counts["validation"]) - (totals - counts["test"]) * 0.25).max() <= 9
    assert min(counts["train"]) > 0


def test_images_without_a_group_are_groups_of_their_own():
    labels, groups = [0, 1, 2] * 40, ["a"] * 30 + [None] * 90
    splits = split(labels, groups=groups)
    assert len(set(splits[:30])) == 1
    assert per_class(labels, splits)["test"] == [8, 8, 8]
    assert split(labels, groups=[None] * 120) == split(labels)


def test_a_class_of_two_groups_gives_its_smaller_one():
    labels = [0] * 40 + [1] * 40 + [2] * 40
    groups = [f"{index // 4}" for index in range(80)] + ["big"] * 30 + ["small"] * 10
    splits = split(labels, {"validation_fraction": 0.0}, groups=groups)
    assert set(splits[80:110]) == {"train"}
    assert set(splits[110:]) == {"test"}


def test_groups_that_the_source_divides_are_named():
    labels = [0, 1, 2] * 4
    given, groups = ["train"] * 9 + ["test"] * 3, [f"patient {index}" for index in (*range(9), 3, 1, 11)]
    with pytest.raises(ValueError, match=r"'patient 1' is in train and test; 'patient 3' is in train and test: put"):
        split(labels, given=given, groups=groups)


@pytest.mark.parametrize(
    ("labels", "options", "problem"),
    [
        ([0, 0, 0, 2, 2, 2], {}, "no training images of 'dog': add some, or list all"),
        ([0, 0, 0, 1, 2, 2, 2], {"allow_empty": True}, "class 'dog' has 1 image: 1 to hold out"),
        (
            [0, 0, 0, 1, 2],
            {},
            "'dog' has 1 image: 1 to hold out; class 'owl' has 1 image: 1 .*: add images, or",
        ),
        ([0, 1, 2, 2], {"given": ["train", "train", "test", "test"]}, "no training images of 'owl': add some, or list"),
        (
            [0, 1, 2] * 3,
            {"groups": ["a", "b", "a", "c", "b", "c", "d", "b", "d"]},
            "class 'dog' has 3 images in too few",
        ),
        ([0, 1, 2, 1], {"given": ["train", "test", "train", "validation"]}, "no training images of 'dog': add some"),
    ],
)
def test_a_class_that_is_too_small_is_named(labels, options, problem):
    with pytest.raises(ValueError, match=problem):
        split(labels, {"validation_fraction": 0.0}, **options)


def test_an_empty_class_keeps_its_number_if_it_is_allowed():
    labels = [0, 2] * 20
    splits = split(labels, allow_empty=True)
    assert per_class(labels, splits) == {"train": [12, 0, 12], "validation": [4, 0, 4], "test": [4, 0, 4]}
    grouped = split(labels, allow_empty=True, groups=[str(index // 2) for index in range(40)])
    assert per_class(labels, grouped) == {"train": [12, 0, 12], "validation": [4, 0, 4], "test": [4, 0, 4]}
