"""Temperature scaling: one number that corrects a model's confidence, fitted on the validation split.

The probabilities become softmax(logits / temperature); the predicted classes stay the same. A temperature above 1 means
that the model is overconfident. (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.)
"""

from __future__ import annotations

import numpy as np
import torch

from classifier.evaluation.metrics import Predictions

LOWEST, HIGHEST = 0.1, 10.0
DIGITS = 4  # after the point: finer than a validation split can resolve, coarser than the last bits of the sums


def fit_temperature(validation: Predictions) -> float:
    """The temperature with the smallest mean cross entropy on these predictions, in LOWEST..HIGHEST.

    The cross entropy is convex in 1 / temperature, so its slope has one root, which is found by bisection.
    """
    logits = torch.from_numpy(validation.log_probabilities).double()  # up to a constant per image
    of_label = logits[torch.arange(len(logits)), torch.from_numpy(validation.labels)]

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(1) * logits).sum(1)
        return float((expected - of_label).sum())

    low, high = LOWEST, HIGHEST
    while high - low > 10.0 ** -(DIGITS + 2):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(1 / middle) < 0 else (middle, high)
    return round((low + high) / 2, DIGITS)


def scaled(predictions: Predictions, temperature: float) -> Predictions:
    """The predictions at another temperature."""
    logits = torch.from_numpy(predictions.log_probabilities).double() / temperature
    scaled_values: np.ndarray = logits.log_softmax(1).numpy()
    return Predictions(predictions.labels, scaled_values, predictions.class_names)
