"""The description of a served model: the metadata of its ONNX file, and the source of the response of `/model`."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifier.data.pixels import Preprocessing
from classifier.errors import UserError

CLOSE = 1e-5  # the largest difference between a probability of onnxruntime and of PyTorch


class Accuracy(BaseModel):
    """The accuracy on the test split, with its confidence interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    value: float
    low: float
    high: float
    confidence: float
    images: int


class Card(BaseModel):
    """A model's origin, classes and preprocessing. Values that were not recorded are None."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int = 1
    dataset: str
    architecture: str
    class_names: list[str] = Field(min_length=2)
    preprocessing: Preprocessing
    ranges: dict[str, list[float]] | None  # of the training images (`classifier.data.ranges`)
    weights_sha256: str
    run_id: str | None  # in MLflow
    git_commit: str | None
    data_digest: str | None  # DVC's hash of data/normalized
    accuracy: Accuracy | None
    opset: int
    warm_up: list[float]  # PyTorch's probabilities of `warm_up_image`

    def metadata(self) -> dict[str, str]:
        """The metadata of an ONNX file: text unchanged, everything else as JSON."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in values.items()
        }

    @classmethod
    def of(cls, metadata: Mapping[str, str], name: str) -> Card:
        """The card in the metadata of the ONNX file `name`. Raises UserError if it has none."""
        optional = ("ranges", "run_id", "git_commit", "data_digest", "accuracy")
        text = ("dataset", "architecture", "weights_sha256", "run_id", "git_commit", "data_digest")
        try:
            values = {key: value if key in text else json.loads(value) for key, value in metadata.items()}
            return cls.model_validate_json(json.dumps(dict.fromkeys(optional) | values))
        except (ValidationError, ValueError):
            raise UserError(f"{name} was not written by classifier export: classifier export {name}") from None

    def warm_up_image(self) -> np.ndarray:
        """A test image `(C, H, W) uint8`, see `warm_up_image`."""
        channels, size = self.preprocessing.channels, self.preprocessing.image_size
        return warm_up_image(channels, size)


def warm_up_image(channels: int, size: int) -> np.ndarray:
    """A generated test image `(C, size, size) uint8`, a pattern of all pixel values."""
    return (
        (np.arange(channels * size * size, dtype=np.uint64) * 37 % 256).astype(np.uint8).reshape(channels, size, size)
    )


def same_answer(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether probabilities `(..., classes)` predict the same class and differ by CLOSE at most."""
    return bool(
        np.array_equal(found.argmax(-1), expected.argmax(-1)) and np.abs(found - expected).max(initial=0) <= CLOSE
    )
