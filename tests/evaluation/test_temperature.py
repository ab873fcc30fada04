"""The temperature that a validation split gives."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from classifier.evaluation.metrics import Predictions, calibration, evaluate, expected_calibration_error
from classifier.evaluation.temperature import HIGHEST, LOWEST, fit_temperature, scaled
from tests.evaluation.samples import predictions_of


def drawn(temperature: float, n: int = 4000, classes: int = 5) -> Predictions:
    """Labels drawn from softmax(logits / temperature), predicted with softmax(logits)."""
    numbers = np.random.default_rng(1)
    logits = numbers.normal(size=(n, classes)) * 3
    labels = (logits / temperature + numbers.gumbel(size=logits.shape)).argmax(axis=1)
    return Predictions(labels, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), list("abcde"[:classes]))


def loss_at(predictions: Predictions, temperature: float) -> float:
    return evaluate(scaled(predictions, temperature), 0.95, 10)["loss"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    predictions = drawn(temperature)
    found = fit_temperature(predictions)
    assert found == pytest.approx(temperature, rel=0.05)
    best = minimize_scalar(lambda value: loss_at(predictions, value), bounds=(LOWEST, HIGHEST), method="bounded")
    assert found == pytest.approx(best.x, abs=1e-3)


def test_scaling_makes_confidence_right_and_changes_no_prediction() -> None:
    predictions = drawn(2.5)
    changed = scaled(predictions, fit_temperature(predictions))
    before, after = (expected_calibration_error(calibration(each, 15)) for each in (predictions, changed))
    assert before > 0.2
    assert after < 0.02
    assert changed.predicted.tolist() == predictions.predicted.tolist()


def test_a_temperature_of_1_is_softmax_itself() -> None:
    predictions = drawn(1.0, n=10)
    np.testing.assert_allclose(scaled(predictions, 1.0).log_probabilities, predictions.log_probabilities, atol=1e-12)


def test_without_a_mistake_or_a_hit_the_temperature_stops_at_its_limits() -> None:
    labels = np.arange(20) % 2
    assert fit_temperature(predictions_of(labels, ["a", "b"])) == LOWEST
    assert fit_temperature(predictions_of(labels, ["a", "b"], wrong=range(20))) == HIGHEST
