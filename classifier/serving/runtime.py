"""The served model: an ONNX file run by onnxruntime. Needs neither torch nor mlflow."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from classifier.errors import UserError
from classifier.serving.card import Card, same_answer

INPUT, OUTPUT = "images", "probabilities"
WARM_UPS = 3


class Model:
    """An ONNX file written by `classifier export`.

    Each image is computed separately, on one thread, because onnxruntime's sums depend on the number of images in a
    batch and on the number of threads.
    """

    def __init__(self, content: bytes, name: str) -> None:
        """Raises UserError unless `content` is such a file; `name` is used in the message."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common type
            raise UserError(f"{name} is not an ONNX model: {' '.join(str(error).split())[:200]}") from None
        self.seconds = math.inf  # per image, known after the warm-up
        self.card = Card.of(self.session.get_modelmeta().custom_metadata_map, name)
        self.identity = {"run_id": self.card.run_id, "weights_sha256": self.card.weights_sha256}
        self.headers = [
            (b"model-run-id", (self.card.run_id or "unknown").encode()),
            (b"model-weights-sha256", self.card.weights_sha256.encode()),
        ]

    @classmethod
    def read(cls, path: Path) -> Model:
        return cls(path.read_bytes(), str(path))

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """An image `(C, H, W) uint8` -> a probability per class, float32."""
        answer: Any = self.session.run(None, {INPUT: image[None]})
        probabilities: np.ndarray = answer[0][0]
        return probabilities

    def warm_up(self) -> None:
        """Predict the warm-up image a few times, and measure `seconds`.

        Raises UserError unless the prediction is the one that PyTorch made at the export.
        """
        found = self.probabilities(self.card.warm_up_image())
        if not same_answer(found, np.array(self.card.warm_up, np.float32)):
            raise UserError(
                f"the model with weights {self.card.weights_sha256} predicts differently here than when it was "
                "exported: export it again on this machine, with classifier export"
            )
        for _ in range(WARM_UPS):
            start = time.perf_counter()
            self.probabilities(self.card.warm_up_image())
            self.seconds = min(self.seconds, time.perf_counter() - start)
