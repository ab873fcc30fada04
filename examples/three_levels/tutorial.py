"""What the five programs share: settings, images, initial weights, the order of the images, and the accuracy.

This module imports no torch, so that `numpy_alone.py` needs numpy alone.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from classifier.data.dataset import Split
from classifier.data.formats import parse
from classifier.data.normalization import make_splits
from classifier.errors import UserError
from classifier.params import load_params
from classifier.project import cli
from classifier.sources.catalog import SOURCES, origin
from classifier.sources.mirrors import configured_mirrors
from classifier.sources.transfer import fetch

ROOT = Path(__file__).parents[2]
MNIST = "train-images-idx3-ubyte.gz"  # the first of its files
SHAPES = {  # LeNet-5's weights; a layer has as many biases as outputs
    "conv1": (6, 1, 5, 5),  # outputs, inputs (channels), height, width
    "conv2": (16, 6, 5, 5),
    "fc1": (120, 400),  # outputs, inputs
    "fc2": (84, 120),
    "fc3": (10, 84),
}
Weights = dict[str, np.ndarray]  # conv1.weight, conv1.bias, conv2.weight, ...: PyTorch's names and shapes


def option(default: Any, about: str, choices: list[str] | None = None) -> Any:
    """A field of `Settings` that is an option of the command line."""
    return field(default=default, metadata={"help": f"{about} (default: {default})", "choices": choices})


@dataclass(frozen=True)
class Settings:
    """The classic tutorial's settings, with batches of 100 images instead of 4."""

    data: str = option("mnist", "mnist, digits, or a folder with the four files of MNIST")
    epochs: int = option(2, "passes over the training images")
    batch_size: int = option(100, "images in an optimizer step")
    learning_rate: float = option(0.001, "of SGD")
    momentum: float = option(0.9, "of SGD")
    log_every: int = option(100, "optimizer steps in one line's running loss")
    precision: str = option("float32", "of the arithmetic", ["float32", "float64"])
    seed: int = option(0, "of the initial weights and of the images' order")


@dataclass(frozen=True)
class Result:
    """What a program's `main` returns, for tests and pictures."""

    losses: list[float]  # the running loss of each line
    weights: Weights
    accuracy: float  # 0..1, on the test images


def run(main: Callable[[Settings], Result]) -> None:
    """Call `main` with the settings that the command line gives, for example `--data digits --epochs 20`."""

    def from_arguments(arguments: list[str]) -> None:
        about = sys.modules[main.__module__].__doc__
        parser = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
        for each in fields(Settings):
            name, kind = f"--{each.name.replace('_', '-')}", type(each.default)
            parser.add_argument(name, type=kind, default=each.default, **each.metadata)
        main(Settings(**vars(parser.parse_args(arguments))))

    cli.run(from_arguments, Path(sys.argv[0]).stem)


def load(settings: Settings) -> tuple[Split, Split]:
    """Training and test images, `(N, 1, 32, 32) uint8` with labels `(N,) int64`, as the stage normalize makes them."""
    dataset, folder = dataset_and_folder(settings)
    pattern = "digits.csv.gz" if dataset == "digits" else "*-ubyte.gz"
    files = {path.name: path.read_bytes() for path in folder.glob(pattern)}
    params = load_params(ROOT / "params.yaml").normalize.model_copy(update={"validation_fraction": 0.0})
    splits = make_splits(*parse(dataset, files), SOURCES[dataset].class_names, params)
    return splits["train"], splits["test"]


def dataset_and_folder(settings: Settings) -> tuple[str, Path]:
    """The data set's name and the folder of its original files. MNIST is downloaded once, if it is not found."""
    if settings.data == "digits":
        installed = origin("digits").installed
        assert installed, "scikit-learn, which ships the digits, is not installed"
        return "digits", installed
    if settings.data != "mnist":
        if not (Path(settings.data) / MNIST).is_file():
            raise UserError(f"--data {settings.data}: allowed are mnist, digits, and a folder that has {MNIST}")
        return "mnist", Path(settings.data)
    for folder in (ROOT / os.environ.get("DATA_MIRROR", ""), ROOT / "../shared/data/mnist"):
        if (folder / MNIST).is_file():
            return "mnist", folder
    folder = ROOT / ".pipeline/examples/mnist"
    folder.mkdir(parents=True, exist_ok=True)
    source = origin("mnist")
    for file in source.files:
        if not (folder / file.name).exists():
            fetch(file, folder, [*configured_mirrors(None), *source.mirrors], deadline_s=600, retries=2)
    return "mnist", folder


def batches(count: int, epoch: int, settings: Settings) -> list[np.ndarray]:
    """The indices of each batch of an epoch, in the engine's order, which depends on seed and epoch alone."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(count)
    return np.split(order, range(settings.batch_size, count, settings.batch_size))


def initial_weights(settings: Settings) -> Weights:
    """The weights that PyTorch's layers have after `torch.manual_seed(seed)`, bit for bit.

    PyTorch draws them uniformly between -1/sqrt(n) and 1/sqrt(n), where n is how many inputs an output has. Both
    libraries have the same generator, the Mersenne Twister; PyTorch uses 24 bits of each of its numbers.
    """
    generator = np.random.RandomState(settings.seed)
    weights = {}
    for layer, shape in SHAPES.items():
        bound = np.float64(np.float32(1 / np.sqrt(np.prod(shape[1:]))))
        for name, size in ((f"{layer}.weight", shape), (f"{layer}.bias", shape[:1])):
            fractions = generator.randint(0, 2**32, size, dtype=np.uint32) % 2**24 / 2**24  # 0..1
            uniform = (fractions * (2 * bound) - bound).astype(np.float32)
            weights[name] = uniform.astype(settings.precision)
    return weights


def accuracy(predict: Callable[[np.ndarray], np.ndarray], test: Split) -> float:
    """The share of the test images that `predict` (raw images -> classes) gets right, printed as in the tutorial."""
    parts = np.array_split(np.arange(len(test)), -(-len(test) // 1000))
    correct = sum(int((predict(test.images[part]) == test.labels[part]).sum()) for part in parts)
    print(f"Accuracy of the network on the {len(test)} test images: {correct / len(test):.2%}")
    return correct / len(test)
