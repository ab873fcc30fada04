"""The canonical form of every data set, `data/normalized/`.

- `train.safetensors`, `validation.safetensors`, `test.safetensors`: images `(N, C, size, size) uint8` in 0..255, labels
  `(N,) int64` in 0..classes-1. A split may be empty.
- `meta.json`: `DatasetMeta`, with a checksum (`classifier.project.checksummed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from classifier.data.preprocessing import LARGEST_SIZE, Preprocessing
from classifier.errors import UserError
from classifier.project.checksummed import Checksummed, read_checksummed, write_checksummed
from classifier.project.files import sha256, sha256_of, write_atomic

SIZE = 32  # pixels, height and width of the known sets
SPLITS = ("train", "validation", "test")
SMALLEST_STD = 1e-9  # division by less can give Inf; the std of pixels that are not all equal is larger


@dataclass(frozen=True)
class Split:
    """images `(N, C, H, W) uint8` in 0..255, labels `(N,) int64`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """The images at `indices`, copied."""
        taken: npt.NDArray[np.uint8] = self.images[indices]
        return taken


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PixelStatistics(Checksummed):
    """Normalization: mean and std per channel, of pixels scaled to 0..1."""

    channels: int = Field(ge=1, le=64)
    class_names: list[str] = Field(min_length=2, max_length=10_000)
    mean: list[Annotated[float, Field(ge=0, le=1)]]
    std: list[Annotated[float, Field(ge=SMALLEST_STD, le=10)]]

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
    """From format 1, whose images are the known sets': 32x32, gray ones with a margin of two pixels."""
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

    @property
    def sha256(self) -> dict[str, str]:
        """Split -> SHA-256 of its file."""
        return {split: files[0].sha256 for split, files in self.files.items()}

    @model_validator(mode="after")
    def _has_all_splits(self) -> Self:
        if not set(self.counts) == set(self.files) == set(SPLITS):
            raise UserError(f"counts and files are not those of {', '.join(SPLITS)}")
        if (self.preprocessing.channels, self.preprocessing.image_size) != (self.channels, self.size):
            raise UserError(f"preprocessing is not that of {self.channels} channels and {self.size} pixels")
        return self


def known_preprocessing(channels: int) -> Preprocessing:
    """That of the known sets: 28x28 gray pixels with a margin (LeCun et al. 1998, II.B), 32x32 pixels in colour."""
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


def read_split(folder: Path, name: str, meta: DatasetMeta) -> Split:
    """Read a split after verifying its bytes against meta.json.

    The arrays are memory-mapped, so that processes that train at the same time share the memory.
    """
    path = folder / f"{name}.safetensors"
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro normalize") from None
    if found != meta.sha256[name]:
        raise UserError(f"{path} has SHA-256 {found}, meta.json says {meta.sha256[name]}: run dvc repro -f normalize")
    try:
        with safe_open(path, framework="pt") as file:  # the only framework for which safetensors maps the file
            split = Split(file.get_tensor("images").numpy(), file.get_tensor("labels").numpy())
    except SafetensorError as error:
        raise UserError(f"{path} is not a split ({error}): run dvc repro -f normalize") from None
    allowed = (len(split), meta.channels, meta.size, meta.size)
    if split.images.shape != allowed or split.images.dtype != np.uint8:
        raise UserError(
            f"{path} holds images {split.images.shape} {split.images.dtype}: allowed is {allowed} uint8: "
            "run dvc repro -f normalize"
        )
    if split.labels.shape != (len(split),) or split.labels.dtype != np.int64 or not _is_counted(split, meta, name):
        raise UserError(f"{path} does not have the labels that meta.json counts: run dvc repro -f normalize")
    return split


def read_paths(folder: Path, name: str, meta: DatasetMeta) -> list[str] | None:
    """The paths of a split's images, in their order; None for a data set that is not a folder of images."""
    return None


def _is_counted(split: Split, meta: DatasetMeta, name: str) -> bool:
    classes = len(meta.class_names)
    in_range = not len(split) or (split.labels.min() >= 0 and split.labels.max() < classes)
    return bool(in_range and np.bincount(split.labels, minlength=classes).tolist() == meta.counts[name])
