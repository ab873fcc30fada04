"""The model as MLflow serves it: raw pixels in, class names and probabilities out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from classifier.data.dataset import SIZE
from classifier.errors import UserError
from classifier.networks.model_dir import read_model, read_model_meta


class InputError(MlflowException, UserError):
    """Invalid input images. MLflow's server responds with status 400 and this message only."""

    def __init__(self, message: str) -> None:
        super().__init__(message, BAD_REQUEST)

    def serialize_as_json(self) -> str:
        """The body of the response. MLflow puts a dump of the pixels before `self.message`."""
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class ServedClassifier:
    """The object whose `predict` MLflow calls."""

    def __init__(self, folder: Path) -> None:
        meta = read_model_meta(folder)
        self.classifier = read_model(folder)
        self.class_names, self.channels = meta.class_names, meta.channels

    @torch.inference_mode()
    def predict(self, images: Any) -> pd.DataFrame:
        """Raw images, as `raw_pixels` takes them -> a row each: `predicted` and a probability per class name."""
        logits = self.classifier(torch.from_numpy(raw_pixels(images, self.channels)))
        table = pd.DataFrame(logits.softmax(1).double().numpy(), columns=self.class_names)
        table.insert(0, "predicted", [self.class_names[index] for index in logits.argmax(1).tolist()])
        return table


def raw_pixels(images: Any, channels: int) -> np.ndarray:
    """Images `(N, C, 32, 32)` with whole numbers in 0..255 -> the same as a writable uint8 array.

    `images` is an array, a tensor or nested lists, or a data frame or dictionary whose only column holds the images.
    JSON has one type of number, so floats are accepted too if all are whole numbers. There is one exception: floats
    whose largest is 1 are refused, because they may be black-and-white pixels divided by 255. Integers of 0 and 1 are
    accepted, as nearly black pixels.

    Raises InputError, which names the shape and the range, for everything else, such as scaled or normalized pixels.
    """
    if isinstance(images, pd.DataFrame):
        images = images.iloc[:, 0].tolist() if images.shape[1] == 1 else images.to_numpy()
    if isinstance(images, dict) and len(images) == 1:
        (images,) = images.values()
    wanted = f"expected images of shape (N, {channels}, {SIZE}, {SIZE}), uint8 in 0..255"
    try:
        array = np.asarray(images.cpu() if isinstance(images, torch.Tensor) else images)
    except ValueError:
        raise InputError(f"{wanted}, got lists of unequal lengths") from None
    if array.shape[1:] != (channels, SIZE, SIZE):
        raise InputError(f"{wanted}, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{wanted}, got {array.dtype}")
    if array.size:
        low, high = array.min(), array.max()
        fractions = array.dtype.kind == "f" and (high == 1 or not np.array_equal(array, np.rint(array)))
        if fractions or not (low >= 0 and high <= 255):
            hint = "neither divided by 255 nor normalized"
            raise InputError(f"{wanted}, {hint}; got {array.dtype} from {low:.4g} to {high:.4g}")
    return np.require(array, np.uint8, ["C", "W"])
