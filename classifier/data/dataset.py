"""The canonical form of every data set, `data/normalized/`.

- `train.safetensors`, `validation.safetensors`, `test.safetensors`: images `(N, C, size, size) uint8` in 0..255, labels
  `(N,) int64` in 0..classes-1. A split may be empty.
- A split too large for one file (`LARGEST_FILE`) has images in `train-00001-of-00004.safetensors` and so on. Its labels
  are in `train-labels.safetensors`, with the digest of each image, `(N, 32) uint8`: the SHA-256 of its pixels. Each
  image is verified when it is first read.
- `images.parquet`: of a folder of images, a row per image in the order train, validation, test (`IMAGE_COLUMNS`).
- `meta.json`: `DatasetMeta`, with a checksum (`classifier.project.checksummed`).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from classifier.data.preprocessing import LARGEST_SIZE, Pixels, Preprocessing
from classifier.errors import UserError
from classifier.project.checksummed import Checksummed, read_checksummed, write_checksummed
from classifier.project.files import sha256, sha256_of, write_atomic
from classifier.schema.train import LENET5_SIZE

SIZE = LENET5_SIZE  # of the known sets
SPLITS = ("train", "validation", "test")
SMALLEST_STD = 1e-9  # division by less can give Inf; the std of pixels that are not all equal is larger


class Split:
    """images `(N, C, H, W) uint8` in 0..255, labels `(N,) int64`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: (C, H, W)."""
        return self.images.shape[1:]

    @property
    def images(self) -> np.ndarray:
        return self._images

    def take(self, indices: npt.NDArray[np.integer], out: np.ndarray | None = None) -> np.ndarray:
        """The images at `indices`, copied, to `out` if it is given."""
        return np.take(self.images, indices, 0, out)


class Sample(Split):
    """At most `most` images of another split, evenly spaced, so that every class of a sorted split is among them."""

    def __init__(self, split: Split, most: int) -> None:
        n = min(most, len(split))
        self.split, self.numbers = split, np.arange(n) * len(split) // max(1, n)
        self.labels = split.labels[self.numbers]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.split.shape

    @property
    def images(self) -> np.ndarray:
        return self.split.take(self.numbers)

    def take(self, indices: npt.NDArray[np.integer], out: np.ndarray | None = None) -> np.ndarray:
        return self.split.take(self.numbers[indices], out)


class StoredSplit(Split):
    """A split in several memory-mapped files. Each image is verified against its digest when it is first read."""

    def __init__(
        self, parts: Sequence[tuple[Path, Pixels]], labels: np.ndarray, digests: Pixels, shape: tuple[int, ...]
    ) -> None:
        """parts: the files and their images `(n, *shape)`, in order."""
        self.parts, self.labels, self.digests, self._shape = parts, labels, digests, shape
        self.starts = np.cumsum([0, *(len(images) for _, images in parts)])
        self.verified = np.zeros(len(labels), bool)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def images(self) -> np.ndarray:
        """All images, read into memory."""
        return self.take(np.arange(len(self)))

    def take(self, indices: npt.NDArray[np.integer], out: np.ndarray | None = None) -> np.ndarray:
        """Raises UserError, naming the file, for an image that was changed."""
        taken = np.empty((len(indices), *self.shape), np.uint8) if out is None else out
        of_part = np.searchsorted(self.starts, indices, side="right") - 1
        rows = indices - self.starts[of_part]
        # One by one, they are copied ten times as fast as by indexing, and other threads can run meanwhile.
        for image, part, row in zip(taken, of_part.tolist(), rows.tolist(), strict=True):
            image[...] = self.parts[part][1][row]
        for place in np.flatnonzero(~self.verified[indices]):
            index = indices[place]
            if hashlib.sha256(taken[place]).digest() != self.digests[index].tobytes():
                path = self.parts[of_part[place]][0]
                raise UserError(f"{path}: image {rows[place]} was changed: run dvc repro -f normalize")
            self.verified[index] = True
        return taken


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PixelStatistics(Checksummed):
    """Statistics of the training images: mean and std per channel, of pixels scaled to 0..1, and ranges."""

    channels: int = Field(ge=1, le=64)
    class_names: list[str] = Field(min_length=2, max_length=10_000)
    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(ge=SMALLEST_STD, le=10)]]
    # `classifier.data.ranges`, to recognize images unlike these; null in files of earlier versions
    ranges: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise UserError(f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels")
        return self


class DataFile(BaseModel):
    """A file of `data/normalized/` that meta.json describes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # in the same folder
    images: Annotated[int, Field(ge=0)]
    sha256: Sha256


def _with_files(values: dict[str, Any]) -> dict[str, Any]:
    """Upgrade from format 1, which had only the known sets: 32x32 images, gray ones with a margin of two pixels."""
    hashes: Mapping[str, str] = values.pop("sha256")
    channels = values["channels"]
    return {
        **values,
        "size": SIZE,
        "preprocessing": known_preprocessing(channels).model_dump() if channels in (1, 3) else None,
        "files": {
            split: [{"name": f"{split}.safetensors", "images": sum(values["counts"][split]), "sha256": known}]
            for split, known in hashes.items()
        },
    }


class DatasetMeta(PixelStatistics):
    """The fields of meta.json."""

    UPGRADES = (_with_files,)

    name: str
    source: str  # address of the data set's home
    licence: str
    citation: str
    size: int = Field(ge=1, le=LARGEST_SIZE)  # pixels, height and width
    preprocessing: Preprocessing  # what turns an original image into one of these
    counts: dict[str, list[Annotated[int, Field(ge=0)]]]  # split -> images per class
    files: dict[str, Annotated[list[DataFile], Field(min_length=1)]]  # split -> its files, in the order of the images
    labels: dict[str, DataFile] = Field(default_factory=dict)  # split -> file of its labels, if it has several
    images: DataFile | None = None  # images.parquet
    decoder: str | None = None  # libraries that decoded the files, with their versions
    excluded: dict[str, str] = Field(default_factory=dict)  # path -> reason

    @property
    def sha256(self) -> dict[str, str]:
        """Split -> SHA-256 of its file; of its label file, which has the images' digests, if it has several files."""
        return {split: self.labels.get(split, files[0]).sha256 for split, files in self.files.items()}

    @model_validator(mode="after")
    def _has_all_splits(self) -> Self:
        if not set(self.counts) == set(self.files) == set(SPLITS):
            raise UserError(f"counts and files are not those of {', '.join(SPLITS)}")
        if any(len(files) > 1 and split not in self.labels for split, files in self.files.items()):
            raise UserError("a split with several files has no file of labels")
        if (self.preprocessing.channels, self.preprocessing.image_size) != (self.channels, self.size):
            raise UserError(f"preprocessing is not that of {self.channels} channels and {self.size} pixels")
        return self


def known_preprocessing(channels: int) -> Preprocessing:
    """Of the known sets: 28x28 gray pixels with a margin (LeCun et al. 1998, II.B), or 32x32 pixels in colour."""
    margin = 2 if channels == 1 else 0
    return Preprocessing.model_validate(
        {"image_size": SIZE, "margin": margin, "resize": "pad", "channels": channels, "invert": False}
    )


def write_split(folder: Path, name: str, split: Split) -> list[DataFile]:
    """Write one split and return its files."""
    content = save({"images": np.ascontiguousarray(split.images), "labels": np.ascontiguousarray(split.labels)})
    write_atomic(folder / f"{name}.safetensors", content)
    return [DataFile(name=f"{name}.safetensors", images=len(split), sha256=sha256(content))]


def write_meta(folder: Path, meta: DatasetMeta) -> None:
    write_checksummed(folder / "meta.json", meta)


def read_meta(folder: Path) -> DatasetMeta:
    """Read meta.json. Raises FileNotFoundError if it is missing, UserError unless `write_meta` wrote it."""
    return read_checksummed(folder / "meta.json", DatasetMeta, "normalize")


def check_decoder(meta: DatasetMeta) -> None:
    """Warn on standard error if the images were decoded by a version of Pillow other than the installed one."""
    installed = f"Pillow {version('pillow')}"
    if meta.decoder is not None and meta.decoder.split(",")[0] != installed:
        print(
            f"the images were decoded by {meta.decoder}, but {installed} is installed: dvc repro -f normalize lists "
            "the images whose pixels change",
            file=sys.stderr,
        )


def read_split(folder: Path, name: str, meta: DatasetMeta) -> Split:
    """Read a split after verifying its bytes against meta.json. Images in several files are verified as they are read.

    The arrays are memory-mapped, so that processes that train at the same time share the memory.
    """
    files = [(folder / file.name, (file.images, meta.channels, meta.size, meta.size)) for file in meta.files[name]]
    if name in meta.labels:
        count = sum(meta.counts[name])
        path = folder / meta.labels[name].name
        labels = _verified(path, meta.labels[name], labels=(count,), digests=(count, 32))
        parts = [(path, _tensors(path, images=shape)["images"]) for path, shape in files]
        split: Split = StoredSplit(parts, labels["labels"], labels["digests"], files[0][1][1:])
    else:
        ((path, shape),) = files
        tensors = _verified(path, meta.files[name][0], images=shape, labels=shape[:1])
        split = Split(tensors["images"], tensors["labels"])
    if not _is_counted(split, meta, name):
        raise UserError(f"the labels in {path} do not match the counts in meta.json: run dvc repro -f normalize")
    return split


def _verified(path: Path, file: DataFile, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tensors of a file, after verifying its bytes against meta.json."""
    _verify(path, file)
    return _tensors(path, **shapes)


def _verify(path: Path, file: DataFile) -> None:
    """Raises FileNotFoundError or UserError unless the file has the SHA-256 of meta.json."""
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro normalize") from None
    if found != file.sha256:
        raise UserError(f"{path} has SHA-256 {found}, meta.json says {file.sha256}: run dvc repro -f normalize")


def _tensors(path: Path, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The tensors of these names and shapes, memory-mapped: `labels` int64, the others uint8."""
    try:
        with safe_open(path, framework="pt") as file:  # for others, safetensors does not map the file
            tensors = {name: file.get_tensor(name).numpy() for name in shapes}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro normalize") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a split ({error}): run dvc repro -f normalize") from None
    for name, shape in shapes.items():
        dtype = np.int64 if name == "labels" else np.uint8
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise UserError(
                f"{path} holds {name} {tensors[name].shape} {tensors[name].dtype}: "
                f"allowed is {shape} {np.dtype(dtype)}: run dvc repro -f normalize"
            )
    return tensors


def read_paths(folder: Path, name: str, meta: DatasetMeta) -> list[str] | None:
    """The paths of a split's images, in their order; None for a data set that is not a folder of images."""
    if meta.images is None:
        return None
    from pyarrow.parquet import ParquetFile  # imported here: it takes 0.2 s

    _verify(folder / meta.images.name, meta.images)
    rows = ParquetFile(folder / meta.images.name).read(["path", "split"]).to_pydict()
    return [path for path, split in zip(rows["path"], rows["split"], strict=True) if split == name]


def _is_counted(split: Split, meta: DatasetMeta, name: str) -> bool:
    classes = len(meta.class_names)
    in_range = not len(split) or (split.labels.min() >= 0 and split.labels.max() < classes)
    return bool(in_range and np.bincount(split.labels, minlength=classes).tolist() == meta.counts[name])
