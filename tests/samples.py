"""Small real inputs for tests: the params of params.yaml and subsets of the 1,797 digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from classifier.data.dataset import SIZE, DatasetMeta, Split, known_preprocessing, write_meta, write_split
from classifier.data.formats import parse
from classifier.data.normalization import canonical_images, counts
from classifier.networks.layers import Costs
from classifier.params import Params, TrainParams, load_params
from classifier.sources.catalog import origin

COSTS = Costs([], parameters=61_706, multiply_adds=416_520, weights_bytes=246_824, activations_bytes=115_760)  # LeNet-5
ROOT = Path(__file__).parent.parent
DIGITS = [str(digit) for digit in range(10)]


def file_params() -> Params:
    """Load the repository's params.yaml."""
    return load_params(ROOT / "params.yaml")


def train_params(**values: Any) -> TrainParams:
    """Params of a short training (one epoch of SGD with momentum, no augmentation), overridden by `values`.

    The keys of sections within it are given like the others: `train_params(shift=1)`.
    """
    plain: dict[str, Any] = {
        "seed": 0,
        "epochs": 1,
        "batch_size": 30,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.001,
        "schedule": "constant",
        "log_every": 10,
        "device": "cpu",
    }
    tree = file_params().train.model_dump() | plain
    tree["augment"]["shift"] = 0
    for section in (tree["augment"], tree["keep"]):
        section |= {name: values.pop(name) for name in section if name in values}
    return TrainParams.model_validate(tree | values)


@cache
def all_digits() -> Split:
    """The real digits in the canonical form: images `(1797, 1, 32, 32) uint8`."""
    source = origin("digits")
    assert source.installed
    (images, labels), _ = parse(
        "digits", {file.name: (source.installed / file.name).read_bytes() for file in source.files}
    )
    return Split(canonical_images(images), labels.astype(np.int64))


def digits_split(count: int, start: int = 0) -> Split:
    """The digits `start` to `start + count`, in the order of the file."""
    digits = all_digits()
    return Split(digits.images[start : start + count], digits.labels[start : start + count])


def dataset_meta(channels: int = 1, size: int = SIZE, **values: Any) -> DatasetMeta:
    """As of the digits, with these `counts`, `files` and other values."""
    known: dict[str, Any] = {
        "name": "digits",
        "source": "https://example.org/digits",
        "licence": "CC BY 4.0",
        "citation": "none",
        "class_names": DIGITS,
        "preprocessing": known_preprocessing(channels).model_copy(update={"image_size": size}),
        "mean": [0.24] * channels,
        "std": [0.33] * channels,
    }
    return DatasetMeta(channels=channels, size=size, **known | values)


def write_digits(folder: Path, train: int = 100, validation: int = 50, test: int = 57) -> DatasetMeta:
    """Write a small `data/normalized` of real digits."""
    ends = {"train": (0, train), "validation": (train, train + validation), "test": (1000, 1000 + test)}
    splits = {name: digits_split(end - start, start) for name, (start, end) in ends.items()}
    meta = dataset_meta(
        counts={name: counts(split.labels, DIGITS) for name, split in splits.items()},
        files={name: write_split(folder, name, split) for name, split in splits.items()},
    )
    write_meta(folder, meta)
    return meta


class StoppedError(Exception):
    """Raised by `stop_after`."""


def stop_after(count: int) -> Callable[..., None]:
    """Return a `report` callable that stops the training at its `count`-th row."""
    left = iter(range(count - 1, -1, -1))

    def report(*row: object) -> None:
        if next(left) == 0:
            raise StoppedError

    return report
