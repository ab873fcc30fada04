"""The canonical form of every data set, `data/normalized/`.

- `train.safetensors`, `validation.safetensors`, `test.safetensors`:
  images `(N, C, 32, 32) uint8` in 0..255, labels `(N,) int64` in 0..classes-1. A split may be empty.
- `meta.json`: `DatasetMeta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from classifier.files import sha256, sha256_of, write_atomic, write_json

SIZE = 32  # pixels, height and width
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """images `(N, C, 32, 32) uint8` in 0..255, labels `(N,) int64`."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class DatasetMeta(BaseModel):
    """What meta.json holds; mean and std per channel, on pixels scaled to 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str  # address of the data set's home
    licence: str
    citation: str
    class_names: list[str]
    channels: int
    mean: list[float]
    std: list[float]
    counts: dict[str, list[int]]  # split -> images per class
    sha256: dict[str, str]  # split -> SHA-256 of its file


def write_split(folder: Path, name: str, split: Split) -> str:
    """Write one split and return the SHA-256 of its file."""
    content = save({"images": np.ascontiguousarray(split.images), "labels": np.ascontiguousarray(split.labels)})
    write_atomic(folder / f"{name}.safetensors", content)
    return sha256(content)


def write_meta(folder: Path, meta: DatasetMeta) -> None:
    write_json(folder / "meta.json", meta.model_dump())


def read_meta(folder: Path) -> DatasetMeta:
    """ValueError when it is not what write_meta wrote, FileNotFoundError when it is missing."""
    path = folder / "meta.json"
    try:
        return DatasetMeta.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro normalize") from None
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({error.error_count()} problems): run dvc repro -f normalize") from None


def read_split(folder: Path, name: str, meta: DatasetMeta) -> Split:
    """Read one split after its bytes have been verified against meta.json.

    The arrays are the mapped file, not a copy of it: processes that train beside each other share one in memory.
    """
    path = folder / f"{name}.safetensors"
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro normalize") from None
    if found != meta.sha256[name]:
        raise ValueError(f"{path} has SHA-256 {found}, meta.json says {meta.sha256[name]}: run dvc repro -f normalize")
    try:
        with safe_open(path, framework="pt") as file:  # the one framework for which it maps the file
            split = Split(file.get_tensor("images").numpy(), file.get_tensor("labels").numpy())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a split: {error}") from None
    if split.images.shape != (len(split), meta.channels, SIZE, SIZE) or split.images.dtype != np.uint8:
        raise ValueError(
            f"{path} holds images {split.images.shape} {split.images.dtype}: "
            f"allowed is ({len(split)}, {meta.channels}, {SIZE}, {SIZE}) uint8"
        )
    return split
