"""Assigns images to train, validation and test: by class, by seed, and never a group to two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from classifier.data.dataset import SPLITS
from classifier.errors import UserError
from classifier.params import NormalizeParams

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]

SHOWN = 10  # classes or groups in one message
PASSES = 3  # over all groups


def assign_splits(
    labels: Labels,
    class_names: Sequence[str],
    params: NormalizeParams,
    *,
    given: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    allow_empty: bool = False,
) -> npt.NDArray[np.int8]:
    """The split of each image, (N,), as an index of SPLITS; a function of its arguments alone.

    `given`: the splits that the source states, for every image or for none. If it lacks a test split,
    `params.test_fraction` of the training images of every class are held out; if it lacks a validation split, so is
    `params.validation_fraction` of the rest of every class; at least one image each. The test split is never used as
    validation. `groups`: images of one group stay in one split; an image of group None is on its own. `allow_empty`
    allows classes without training images. Raises UserError, naming them, for classes that are too small and for groups
    that the source puts into several splits.
    """
    splits = np.zeros(len(labels), np.int8)
    if given is not None and any(split is not None for split in given):
        if missing := sum(split is None for split in given):
            raise UserError(f"{missing:,} of {len(given):,} images have no split: allowed is a split for all, or none")
        splits = np.array([SPLITS.index(split) for split in given if split is not None], np.int8)
        if groups is not None:
            _check_groups(splits, groups)
    training = np.bincount(labels[splits == 0], minlength=len(class_names))
    empty = [name for name, count in zip(class_names, training.tolist(), strict=True) if not count]
    if empty and not allow_empty:
        more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
        raise UserError(
            f"no training images of {', '.join(map(repr, empty[:SHOWN]))}{more}: add some, or list all classes in "
            "download.classes"
        )
    generator = np.random.Generator(np.random.PCG64(params.seed))
    for name, fraction in (("test", params.test_fraction), ("validation", params.validation_fraction)):
        number = SPLITS.index(name)
        if (splits == number).any():
            continue
        pool = np.flatnonzero(splits == 0)
        of_pool = [groups[index] for index in pool.tolist()] if groups is not None else []
        if any(group is not None for group in of_pool):
            held = choose_groups(labels[pool], of_pool, class_names, fraction, generator, allow_empty=allow_empty)
        else:
            held = choose_by_class(labels[pool], class_names, fraction, generator, allow_empty=allow_empty)
        splits[pool[held]] = number
    return splits


def choose_by_class(
    labels: Labels,
    class_names: Sequence[str],
    fraction: float,
    generator: np.random.Generator,
    *,
    allow_empty: bool = False,
) -> Indices:
    """Sorted indices of `fraction` of the images of every class, rounded, at least one unless it is 0."""
    counts = _to_hold_out(np.bincount(labels, minlength=len(class_names)), class_names, fraction, allow_empty)
    chosen = []
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        # Not permutation(): NumPy guarantees only the stream of random() across releases.
        order = np.argsort(generator.random(len(members)), kind="stable")
        chosen.append(members[order[:count]])
    return np.sort(np.concatenate(chosen))


def choose_groups(
    labels: Labels,
    groups: Sequence[str | None],
    class_names: Sequence[str],
    fraction: float,
    generator: np.random.Generator,
    *,
    allow_empty: bool = False,
) -> Indices:
    """Sorted indices of the images of whole groups, close to `fraction` of the images of every class.

    Groups come in random order, several times; each is held out or put back if that brings the numbers per class closer
    to those of `choose_by_class` (least squares, relative to them) and leaves training images to each of its classes. A
    class that has none held out then gets the smallest group that can be spared.
    """
    totals = np.bincount(labels, minlength=len(class_names))
    wanted = np.array(_to_hold_out(totals, class_names, fraction, allow_empty))
    if not fraction:
        return np.empty(0, np.intp)
    held = np.zeros_like(totals)  # images per class
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(index if group is None else group, []).append(index)
    indices = [np.array(each) for each in members.values()]
    contents = [np.unique(labels[each], return_counts=True) for each in indices]  # classes, images of each
    chosen: set[int] = set()

    def is_closer(classes: Indices, now: Indices) -> bool:
        before, after = (((counts - wanted[classes]) ** 2 / wanted[classes]).sum() for counts in (held[classes], now))
        return bool(after < before and (now < totals[classes]).all())

    def can_be_spared(number: int) -> bool:
        classes, counts = contents[number]
        return bool((held[classes] + counts < totals[classes]).all())

    order = [int(number) for number in np.argsort(generator.random(len(indices)), kind="stable")]
    for _ in range(PASSES):
        for number in order:
            classes, counts = contents[number]
            now = held[classes] + (-counts if number in chosen else counts)
            if is_closer(classes, now):
                held[classes] = now
                chosen ^= {number}
    for label in np.flatnonzero((held == 0) & (totals > 0)).tolist():
        holding = [number for number in order if label in contents[number][0] and can_be_spared(number)]
        if not holding:
            raise UserError(
                f"class {class_names[label]!r} has {totals[label]} images in too few groups to hold one out: "
                "add groups, or set download.groups: null"
            )
        smallest = min(holding, key=lambda number: len(indices[number]))
        held[contents[smallest][0]] += contents[smallest][1]
        chosen.add(smallest)
    return np.sort(np.concatenate([indices[number] for number in chosen]))


def _to_hold_out(totals: Labels, class_names: Sequence[str], fraction: float, allow_empty: bool) -> list[int]:
    """How many images of each class to hold out. Raises UserError, naming all classes that have too few."""
    counts = [max(1, round(total * fraction)) if fraction else 0 for total in totals.tolist()]
    small = []
    for number, total in enumerate(totals.tolist()):
        if not total and allow_empty:
            counts[number] = 0
        elif counts[number] >= total:
            small.append(number)
    if small:
        shown = [
            f"class {class_names[number]!r} has {totals[number]} {'image' if totals[number] == 1 else 'images'}: "
            f"{counts[number]} to hold out"
            for number in small[:SHOWN]
        ]
        more = f"; {len(small) - SHOWN} more classes" if len(small) > SHOWN else ""
        lower = "lower normalize.test_fraction or normalize.validation_fraction, "
        raise UserError(
            f"{'; '.join(shown)}{more}; at least one must remain for training: "
            f"{lower if max(counts[number] for number in small) > 1 else ''}add images, or remove the class"
        )
    return counts


def _check_groups(splits: npt.NDArray[np.int8], groups: Sequence[str | None]) -> None:
    """Raises UserError for groups in several splits."""
    found: dict[str, set[int]] = {}
    for split, group in zip(splits.tolist(), groups, strict=True):
        if group is not None:
            found.setdefault(group, set()).add(split)
    crossing = {group: sorted(numbers) for group, numbers in found.items() if len(numbers) > 1}
    if crossing:
        shown = [
            f"{group!r} is in {' and '.join(SPLITS[number] for number in crossing[group])}"
            for group in sorted(crossing)[:SHOWN]
        ]
        more = f" and {len(crossing) - SHOWN} more" if len(crossing) > SHOWN else ""
        raise UserError(
            f"groups in several splits: {'; '.join(shown)}{more}: "
            "put each group into one split, or set download.groups: null"
        )
