"""Known answers, worked out by hand or taken from the paper that is named."""

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from classifier.evaluation.metrics import (
    Predictions,
    calibration,
    evaluate,
    exp,
    expected_calibration_error,
    most_confident_errors,
    roc_areas,
    top_hits,
    wilson_interval,
)
from classifier.evaluation.tables import confusion, confusions, misclassified, per_class, prediction_table
from tests.evaluation.samples import noisy_predictions, predictions_of

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
        "balanced_accuracy": 0.75,  # recall of zero 1/2, of one 1; two has no images
        # -(ln 1/2 + ln 1/8 + ln 3/4 + ln 1/2) / 4 = (5 ln 2 + ln 4/3) / 4
        "loss": pytest.approx((5 * np.log(2) + np.log(4 / 3)) / 4, rel=1e-15),
        # zero: precision 1, recall 1/2, F1 2/3; one: precision 2/3, recall 1, F1 4/5; two does not occur
        "macro_f1": pytest.approx((2 / 3 + 4 / 5) / 2, rel=1e-15),
        # zero: 0.5 > 0.125, 0.5 > 1e-300, 0.125 = 0.125 (half), 0.125 > 1e-300; one: 1, a half, 1 and 0 of four pairs
        "roc_auc": pytest.approx((3.5 / 4 + 2.5 / 4) / 2, rel=1e-15),
        # Bin (0.25, 0.5]: confidence 1/2, accuracy 1; bin (0.5, 0.75]: confidence 3/4, accuracy 1/2.
        "expected_calibration_error": pytest.approx((2 * 0.5 + 2 * 0.25) / 4, rel=1e-15),
    }
    assert {name: type(value) for name, value in metrics.items()} == dict.fromkeys(metrics, float)


@pytest.mark.parametrize(("n", "classes", "absent"), [(300, 10, ()), (200, 7, (0, 3)), (50, 3, ())])
def test_metrics_are_those_of_scikit_learn(n: int, classes: int, absent: tuple[int, ...]) -> None:
    predictions = noisy_predictions(n, [str(number) for number in range(classes)], absent)
    labels, probabilities = predictions.labels, exp(predictions.log_probabilities)
    present = np.unique(labels)
    areas = [roc_auc_score(labels == number, probabilities[:, number]) for number in present]
    expected = {
        "accuracy": (predictions.predicted == labels).mean(),
        "balanced_accuracy": np.mean([(predictions.predicted == labels)[labels == each].mean() for each in present]),
        "macro_f1": f1_score(labels, predictions.predicted, average="macro"),
        "roc_auc": np.mean(areas),
        "loss": log_loss(labels, probabilities, labels=range(classes)),
    }
    if classes > 5:
        expected["top5_accuracy"] = top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes))
    if not absent:
        expected["balanced_accuracy"] = balanced_accuracy_score(labels, predictions.predicted)
    metrics = evaluate(predictions, 0.95, 10)
    assert {name: metrics[name] for name in expected} == {name: pytest.approx(each) for name, each in expected.items()}
    assert ("top5_accuracy" in metrics) == (classes > 5)
    table = per_class(predictions, 0.95)
    of_class = precision_recall_fscore_support(labels, predictions.predicted, labels=range(classes), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), of_class, strict=True):
        assert table[name].tolist() == pytest.approx(values.tolist())


def test_the_area_is_unknown_for_a_class_without_images_and_omitted_for_a_single_class() -> None:
    areas = roc_areas(noisy_predictions(40, NAMES, absent=[1]))
    assert np.isnan(areas).tolist() == [False, True, False]
    single = predictions_of(np.zeros(5, dtype=np.int64), NAMES, wrong=[2])
    assert "roc_auc" not in evaluate(single, 0.95, 4)
    assert evaluate(single, 0.95, 4)["balanced_accuracy"] == 0.8


def test_one_image_is_enough() -> None:
    metrics = evaluate(predictions_of(np.array([1]), NAMES), 0.95, 4)
    assert (metrics["accuracy"], metrics["balanced_accuracy"], metrics["macro_f1"]) == (1, 1, 1)


def test_top_hits_counts_ties_by_the_order_of_the_classes() -> None:
    even = Predictions(np.arange(6), np.log(np.full((6, 6), 1 / 6)), list("abcdef"))
    assert [top_hits(even, k) for k in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert evaluate(even, 0.95, 4)["top5_accuracy"] == pytest.approx(5 / 6)


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
    table = per_class(small(), 0.95)
    assert list(table.columns) == [
        *("class", "name", "precision", "recall", "f1", "support", "predicted"),
        *("recall_low", "recall_high", "precision_low", "precision_high"),
    ]
    intervals = [*wilson_interval(1, 2, 0.95), *wilson_interval(1, 1, 0.95)]
    assert table.iloc[0, 7:].tolist() == intervals
    assert table.iloc[2, 7:].isna().all()
    assert table["class"].tolist() == [0, 1, 2]
    assert table["name"].tolist() == NAMES
    assert table["precision"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert table["recall"].tolist() == pytest.approx([0.5, 1, 0])
    assert table["f1"].tolist() == pytest.approx([2 / 3, 4 / 5, 0])
    assert table["support"].tolist() == [2, 2, 0]
    assert table["predicted"].tolist() == [1, 3, 0]


def test_confusion_has_every_pair_in_the_order_of_the_classes() -> None:
    assert small().confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    table = confusion(small())
    assert list(table.columns) == ["actual", "predicted", "count"]
    assert table["actual"].tolist() == [name for name in NAMES for _ in range(3)]
    assert table["predicted"].tolist() == NAMES * 3
    assert table["count"].tolist() == [1, 1, 0, 0, 2, 0, 0, 0, 0]


def test_confusion_of_many_classes_leaves_out_the_zeros() -> None:
    predictions = predictions_of(np.array([0, 0, 50]), [str(number) for number in range(51)], wrong=[1])
    assert confusion(predictions).values.tolist() == [["0", "0", 1], ["0", "1", 1], ["50", "50", 1]]


def test_confusions_are_the_largest_first_and_then_the_largest_share() -> None:
    #                    a -> b twice, c -> a of 2 images, b -> c of 3 images, c is never b
    labels = np.array([0, 0, 0, 2, 2, 1, 1, 1])
    predictions = predictions_of(labels, ["a", "b", "c"], wrong=[0, 1, 3, 5])
    table = confusions(predictions)
    assert table.values.tolist() == [["a", "b", 2, 2 / 3], ["c", "a", 1, 1 / 2], ["b", "c", 1, 1 / 3]]
    assert confusions(predictions_of(labels, ["a", "b", "c"])).columns.tolist() == [
        "actual",
        "predicted",
        "count",
        "share",
    ]


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
    found = Predictions(LABELS, singles, NAMES).top_probability
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.exp(singles.astype(np.float64)).max(axis=1), rtol=1e-15)


def test_prediction_table_has_a_row_per_image() -> None:
    table = prediction_table(small())
    assert list(table.columns) == ["index", "path", "label", "predicted", "p_0", "p_1", "p_2"]
    assert [str(kind) for kind in table.dtypes] == ["int64", "string", "int64", "int64", *["float32"] * 3]
    assert table["path"].isna().all()
    assert table["index"].tolist() == [0, 1, 2, 3]
    assert table["label"].tolist() == LABELS.tolist()
    assert table["predicted"].tolist() == [0, 1, 1, 1]
    assert np.array_equal(table.filter(like="p_").to_numpy(), PROBABILITIES.astype(np.float32))


def test_images_are_named_by_their_paths() -> None:
    paths = [f"test/zero/{number}.jpg" for number in range(4)]
    assert prediction_table(small(), paths)["path"].tolist() == paths
    table = misclassified(small(), 10, paths)
    assert table.values.tolist() == [[1, "test/zero/1.jpg", "zero", "one", 0.75]]
    assert misclassified(small(), 10)["path"].isna().tolist() == [True]


def test_most_confident_errors_come_first_and_ties_by_index() -> None:
    predictions = confident([False, True, False, False, False], [0.6, 0.99, 0.9, 0.6, 0.7])
    assert most_confident_errors(predictions, 10).tolist() == [2, 4, 0, 3]
    assert most_confident_errors(predictions, 3).tolist() == [2, 4, 0]
    assert most_confident_errors(confident([True], [0.6]), 3).tolist() == []
    many = confident([False] * 1000, [0.6, 0.7] * 500)  # enough for a sort that is not stable to show it
    assert most_confident_errors(many, 1000).tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]


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
