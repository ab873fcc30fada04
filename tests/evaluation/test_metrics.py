"""Known answers, worked out by hand or taken from the paper that is named."""

import numpy as np
import pytest

from classifier.evaluation.metrics import (
    Predictions,
    calibration,
    confusion,
    confusion_counts,
    evaluate,
    expected_calibration_error,
    most_confident_mistakes,
    per_class,
    prediction_table,
    wilson_interval,
)

NAMES = ["zero", "one", "two"]
# Three classes; "two" has no images and is never predicted.      label, top class
#   image 0: 0 -> 0 at 0.5; image 1: 0 -> 1 at 0.75; image 2: 1 -> 1 at 0.75; image 3: 1 -> 1 at 1/2 (tie with 2)
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.125, 0.75, 0.125], [1e-300, 0.5, 0.5]])
LABELS = np.array([0, 0, 1, 1])


def small() -> Predictions:
    return Predictions(LABELS, np.log(PROBABILITIES), NAMES)


def confident(hits: list[bool], probabilities: list[float]) -> Predictions:
    """Two classes; class 0 is always predicted, with these probabilities, and is right where `hits` says so."""
    top = np.array(probabilities)
    return Predictions(np.where(hits, 0, 1), np.log(np.stack([top, 1 - top], axis=1)), ["yes", "no"])


def test_metrics_of_the_small_case() -> None:
    metrics = evaluate(small(), confidence=0.95, calibration_bins=4)
    low, high = wilson_interval(3, 4, 0.95)
    assert metrics == {
        "accuracy": 0.75,
        "accuracy_low": low,
        "accuracy_high": high,
        "error_rate": 0.25,
        # -(ln 1/2 + ln 1/8 + ln 3/4 + ln 1/2) / 4 = (5 ln 2 + ln 4/3) / 4
        "loss": pytest.approx((5 * np.log(2) + np.log(4 / 3)) / 4, rel=1e-15),
        # zero: precision 1, recall 1/2, F1 2/3; one: precision 2/3, recall 1, F1 4/5; two does not occur
        "macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2, rel=1e-15),
        # Bin (0.25, 0.5]: confidence 1/2, accuracy 1; bin (0.5, 0.75]: confidence 3/4, accuracy 1/2.
        "expected_calibration_error": pytest.approx((2 * 0.5 + 2 * 0.25) / 4, rel=1e-15),
        "n": 4,
    }
    assert {name: type(value) for name, value in metrics.items()} == dict.fromkeys(metrics, float) | {"n": int}


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3 (score).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_the_published_table(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits, n, 0.95) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert wilson_interval(n - hits, n, 0.95) == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 360, 10_000])
def test_wilson_interval_of_none_and_all_stays_within_0_and_1(n: int) -> None:
    low, high = wilson_interval(0, n, 0.95)
    assert low == pytest.approx(0, abs=1e-15)
    assert 0 <= low < high < 1
    low, high = wilson_interval(n, n, 0.95)
    assert high == pytest.approx(1, abs=1e-15)
    assert 0 < low < high <= 1


def test_more_confidence_is_a_wider_interval() -> None:
    low, high = wilson_interval(50, 60, 0.9)
    wider_low, wider_high = wilson_interval(50, 60, 0.99)
    assert wider_low < low < 50 / 60 < high < wider_high
    assert evaluate(small(), 0.99, 4)["accuracy_low"] < evaluate(small(), 0.9, 4)["accuracy_low"]


def test_loss_keeps_what_a_probability_would_round_away() -> None:
    far = Predictions(np.array([0, 1]), np.array([[-1e4, 0.0], [-1e4, 0.0]], dtype=np.float32), ["a", "b"])
    assert evaluate(far, 0.95, 10)["loss"] == 5_000


def test_loss_is_summed_in_float64() -> None:
    # In float32 the sum of 2 million times 0.1 is off in the fourth digit or, summed pairwise, in the eighth.
    n = 2_000_001
    tenth = np.float32(-0.1)
    rows = np.tile(np.array([tenth, np.float32(-2.35)], dtype=np.float32), (n, 1))
    loss = evaluate(Predictions(np.zeros(n, dtype=np.int64), rows, ["a", "b"]), 0.95, 10)["loss"]
    assert loss == pytest.approx(-float(tenth), rel=1e-13)


def test_macro_f1_counts_a_class_that_is_only_predicted_and_one_that_is_only_a_label() -> None:
    # labels 0 0 2, predictions 0 1 0: F1 of 0 is 1/2 (1 hit of 2 labels and 2 predictions), of 1 and 2 it is 0.
    predictions = Predictions(np.array([0, 0, 2]), np.log(np.eye(3)[[0, 1, 0]] * 0.97 + 0.01), NAMES)
    assert evaluate(predictions, 0.95, 4)["macro_f1"] == pytest.approx(0.5 / 3)


def test_per_class_with_a_class_nobody_has_seen() -> None:
    table = per_class(small())
    assert list(table.columns) == ["class", "name", "precision", "recall", "f1", "support", "predicted"]
    assert table["class"].tolist() == [0, 1, 2]
    assert table["name"].tolist() == NAMES
    assert table["precision"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert table["recall"].tolist() == pytest.approx([0.5, 1, 0])
    assert table["f1"].tolist() == pytest.approx([2 / 3, 4 / 5, 0])
    assert table["support"].tolist() == [2, 2, 0]
    assert table["predicted"].tolist() == [1, 3, 0]


def test_confusion_has_every_pair_in_the_order_of_the_classes() -> None:
    assert confusion_counts(small()).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    table = confusion(small())
    assert list(table.columns) == ["actual", "predicted", "count"]
    assert table["actual"].tolist() == [name for name in NAMES for _ in range(3)]
    assert table["predicted"].tolist() == NAMES * 3
    assert table["count"].tolist() == [1, 1, 0, 0, 2, 0, 0, 0, 0]


def test_calibration_bins_are_open_below_and_closed_above() -> None:
    assert small().top_probability.tolist() == [0.5, 0.75, 0.75, 0.5]  # on the edges of 4 bins, exactly
    assert calibration(small(), 4)["count"].tolist() == [0, 2, 2, 0]


def test_calibration_of_a_case_with_empty_bins() -> None:
    # 5 bins. 0.5, 0.55 and 0.6 lie in (0.4, 0.6], 0.61 in (0.6, 0.8], 1 - 2^-30 in the last.
    bins = calibration(confident([True, False, True, True, False], [0.5, 0.55, 0.6, 0.61, 1 - 2**-30]), 5)
    assert list(bins.columns) == ["low", "high", "count", "confidence", "accuracy"]
    assert bins["low"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert bins["high"].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert bins["count"].tolist() == [0, 0, 3, 1, 1]
    assert bins["confidence"].tolist() == pytest.approx([np.nan, np.nan, 0.55, 0.61, 1 - 2**-30], nan_ok=True)
    assert bins["accuracy"].tolist() == pytest.approx([np.nan, np.nan, 2 / 3, 1, 0], nan_ok=True)
    gaps = 3 * (2 / 3 - 0.55) + (1 - 0.61) + (1 - 2**-30)
    assert expected_calibration_error(bins) == pytest.approx(gaps / 5)


def test_a_probability_of_exactly_1_is_in_the_last_bin() -> None:
    sure = Predictions(np.array([0]), np.array([[0.0, -1e4]]), ["a", "b"])
    assert calibration(sure, 7)["count"].tolist() == [0] * 6 + [1]
    assert evaluate(sure, 0.95, 7)["expected_calibration_error"] == 0


def test_ties_are_the_first_class() -> None:
    even = Predictions(np.array([0, 1]), np.log(np.full((2, 2), 0.5)), ["a", "b"])
    assert even.predicted.tolist() == [0, 0]
    assert even.predicted.dtype == np.int64


def test_probabilities_are_float64_whatever_comes_in() -> None:
    singles = np.log(PROBABILITIES).astype(np.float32)
    found = Predictions(LABELS, singles, NAMES).probabilities
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.exp(singles.astype(np.float64)), rtol=1e-15)


def test_prediction_table_has_a_row_per_image() -> None:
    table = prediction_table(small())
    assert list(table.columns) == ["index", "label", "predicted", "p_0", "p_1", "p_2"]
    assert [str(kind) for kind in table.dtypes] == ["int64"] * 3 + ["float32"] * 3
    assert table["index"].tolist() == [0, 1, 2, 3]
    assert table["label"].tolist() == LABELS.tolist()
    assert table["predicted"].tolist() == [0, 1, 1, 1]
    assert np.array_equal(table.filter(like="p_").to_numpy(), PROBABILITIES.astype(np.float32))


def test_most_confident_mistakes_come_first_and_ties_by_index() -> None:
    predictions = confident([False, True, False, False, False], [0.6, 0.99, 0.9, 0.6, 0.7])
    assert most_confident_mistakes(predictions, 10).tolist() == [2, 4, 0, 3]
    assert most_confident_mistakes(predictions, 3).tolist() == [2, 4, 0]
    assert most_confident_mistakes(confident([True], [0.6]), 3).tolist() == []
    many = confident([False] * 1000, [0.6, 0.7] * 500)  # enough for a sort that is not stable to show it
    assert most_confident_mistakes(many, 1000).tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


@pytest.mark.parametrize(
    ("labels", "log_probabilities", "names", "message"),
    [
        ([], np.zeros((0, 2)), ["a", "b"], "no images to evaluate on"),
        ([0], np.zeros((1, 1)), ["a"], "1 class names: allowed are 2 or more"),
        (
            [0, 1],
            np.zeros((3, 2)),
            ["a", "b"],
            r"\(2,\) and log-probabilities \(3, 2\) do not fit 2 images",
        ),
        ([[0], [1]], np.zeros((2, 2)), ["a", "b"], r"labels \(2, 1\)"),
        ([0, 1, 2], np.zeros((3, 2)), ["a", "b"], "image 2 has label 2: allowed is 0..1"),
        ([0, -1], np.zeros((2, 2)), ["a", "b"], "image 1 has label -1"),
        ([0, 1], np.array([[0, 0], [0, np.nan]]), ["a", "b"], "image 1 has log-probabilities that are NaN or Inf"),
        ([0], np.array([[0, -np.inf]]), ["a", "b"], "image 0 has log-probabilities that are NaN or Inf"),
    ],
)
def test_what_does_not_fit_is_refused(
    labels: list[int], log_probabilities: np.ndarray, names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(np.array(labels, dtype=np.int64), log_probabilities, names)
