"""Evaluations of a known-answer classifier: no network, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from classifier.data.dataset import SPLITS, DataFile, Split
from classifier.evaluation.metrics import Predictions
from classifier.evaluation.report import Evaluation
from classifier.networks.model_dir import ModelMeta
from classifier.params import EvaluateParams
from tests.samples import COSTS, dataset_meta, file_params


def predictions_of(
    labels: np.ndarray, names: Sequence[str], wrong: Sequence[int] = (), top: float = 0.9
) -> Predictions:
    """Each label is predicted with probability `top`; where `wrong`, the class after it."""
    predicted = labels.copy()
    predicted[list(wrong)] = (labels[list(wrong)] + 1) % len(names)
    log_probabilities = np.full((len(labels), len(names)), np.log((1 - top) / (len(names) - 1)))
    log_probabilities[np.arange(len(labels)), predicted] = np.log(top)
    return Predictions(labels, log_probabilities, list(names))


def noisy_predictions(n: int, names: Sequence[str], absent: Sequence[int] = (), seed: int = 7) -> Predictions:
    """About three in four are right; the classes `absent` have no images."""
    numbers = np.random.default_rng(seed)
    present = np.array([number for number in range(len(names)) if number not in absent])
    labels = present[numbers.integers(0, len(present), n)]
    logits = numbers.normal(size=(n, len(names)))
    logits[np.arange(n), labels] += 2
    return Predictions(labels, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), list(names))


def images_of(n: int, channels: int = 1, size: int = 32) -> np.ndarray:
    """`(n, channels, size, size) uint8`: blocks of random colours."""
    blocks = np.random.default_rng(3).integers(0, 256, (n, channels, 4, 4)).astype(np.uint8)
    places = np.arange(size) * 4 // size
    return np.ascontiguousarray(blocks[:, :, places[:, None], places])


def history(scale: float = 1.0) -> pd.DataFrame:
    """Two epochs of five windows."""
    steps = np.arange(10, 110, 10)
    epoch_end = steps % 50 == 0
    return pd.DataFrame(
        {
            "step": steps,
            "epoch": np.where(steps > 50, 2, 1),
            "images": steps * 32,
            "learning_rate": np.linspace(0.1, 0, 10),
            "running_loss": np.linspace(2.3, 0.5, 10) * scale,
            "train_loss": np.where(epoch_end, 1.0, np.nan),
            "validation_loss": np.where(epoch_end, 1.1 * scale, np.nan),
            "validation_accuracy": np.where(epoch_end, 0.9 * scale, np.nan),
        }
    )


def evaluation_of(predictions: Predictions, channels: int = 1, size: int = 32, **values: Any) -> Evaluation:
    """Of a model of seed 0, with metas that fit."""
    names, counts = predictions.class_names, np.bincount(predictions.labels, minlength=len(predictions.class_names))
    data = dataset_meta(
        channels,
        size,
        class_names=names,
        counts={split: counts.tolist() for split in SPLITS},
        files={
            split: [DataFile(name=f"{split}.safetensors", images=len(predictions), sha256="1" * 64)] for split in SPLITS
        },
    )
    model = ModelMeta(
        architecture="lenet5",
        pretrained=None,
        preprocessing=data.preprocessing,
        channels=channels,
        class_names=names,
        mean=data.mean,
        std=data.std,
        dataset=data.name,
        seed=0,
        replicas={},
        weights_sha256="2" * 64,
    )
    known: dict[str, Any] = {
        "data": data,
        "model": model,
        "dataset": data.name,
        "costs": COSTS.summary(),
        "layers": [
            {"layer": "conv1", "kind": "Conv2d", "output": "6x28x28", "parameters": "156", "multiply_adds": "117600"}
        ],
        "histories": {0: history()},
        "test": Split(images_of(len(predictions), channels, size), predictions.labels),
        "predictions": predictions,
    }
    return Evaluation(**known | values)


def params(**values: Any) -> EvaluateParams:
    known = {"calibration_bins": 10, "misclassified": 4, "corruptions": []}
    return EvaluateParams.model_validate(file_params().evaluate.model_dump() | known | values)
