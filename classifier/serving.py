"""The model as MLflow serves it: raw pixels in, class names and probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from classifier.model_dir import read_model, read_model_meta


class ServedClassifier:
    """MLflow calls `predict`; nothing was pickled."""

    def __init__(self, folder: Path) -> None:
        self.classifier = read_model(folder)
        self.class_names = read_model_meta(folder).class_names

    @torch.inference_mode()
    def predict(self, images: np.ndarray) -> pd.DataFrame:
        """Raw images `(N, C, 32, 32) uint8` in 0..255 -> a row each: `predicted` and a probability per class name."""
        logits = self.classifier(torch.from_numpy(np.ascontiguousarray(images)))
        table = pd.DataFrame(logits.softmax(1).double().numpy(), columns=self.class_names)
        table.insert(0, "predicted", [self.class_names[index] for index in logits.argmax(1).tolist()])
        return table


def _load_pyfunc(folder: str) -> ServedClassifier:
    """What MLflow calls to load the model directory."""
    return ServedClassifier(Path(folder))
