"""The model for MLflow's pyfunc interface: raw pixels or image files in, class names and probabilities out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from classifier.data.pixels import BadImageError
from classifier.errors import UserError
from classifier.networks.inference import probabilities_of
from classifier.networks.model_dir import read_model, read_model_meta
from classifier.serving.arrays import InputError, pixels_of
from classifier.workers import threads


class RefusedInputError(MlflowException, UserError):
    """Invalid input images. MLflow's server responds with status 400 and this message only."""

    def __init__(self, message: str) -> None:
        super().__init__(message, BAD_REQUEST)

    def serialize_as_json(self) -> str:
        """The body of the response, without the dump of the pixels that MLflow prepends to `self.message`."""
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class ServedClassifier:
    """The object whose `predict` MLflow calls."""

    def __init__(self, folder: Path) -> None:
        meta = read_model_meta(folder)
        self.classifier = read_model(folder)
        self.class_names, self.preprocessing = meta.class_names, meta.preprocessing

    def predict(self, images: Any) -> pd.DataFrame:
        """Raw images or image files, as for `pixels_of` -> a row per image: `predicted` and a probability per class.

        A data frame has one column with an image per row.
        """
        if isinstance(images, pd.DataFrame):
            images = images.iloc[:, 0].tolist() if images.shape[1] == 1 else images.to_numpy()
        try:
            pixels = pixels_of(images, self.preprocessing)
        except (InputError, BadImageError) as error:
            raise RefusedInputError(str(error)) from None
        with threads(1):  # like evaluate: the order of sums depends on the number of threads, too
            probabilities = probabilities_of(self.classifier, pixels)
        table = pd.DataFrame(probabilities.astype(float), columns=self.class_names)
        table.insert(0, "predicted", [self.class_names[index] for index in probabilities.argmax(1).tolist()])
        return table
