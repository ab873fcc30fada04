"""The tables of `reports/evaluate/`. Classes are in the data set's order, so equal predictions give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from classifier.evaluation.metrics import Predictions, exp, most_confident_errors, wilson_interval

WHOLE = 50  # classes; up to this number the confusion matrix is legible, and listed with its zeros


def per_class(predictions: Predictions, confidence: float) -> pd.DataFrame:
    """One row per class.

    Columns: class (index), name, precision, recall, f1, support (images), predicted (count), and the Wilson intervals
    recall_low, recall_high, precision_low, precision_high, NaN for a class without images or predictions. Its recall
    or precision is 0.
    """
    counts = predictions.confusion
    right, support, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)

    def intervals(of: np.ndarray) -> np.ndarray:
        found = [
            wilson_interval(int(hits), int(n), confidence) if n else (np.nan, np.nan)
            for hits, n in zip(right, of, strict=True)
        ]
        return np.array(found)

    of_recall, of_precision = intervals(support), intervals(predicted)
    return pd.DataFrame(
        {
            "class": np.arange(len(counts)),
            "name": predictions.class_names,
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(support + predicted, 1),
            "support": support,
            "predicted": predicted,
            "recall_low": of_recall[:, 0],
            "recall_high": of_recall[:, 1],
            "precision_low": of_precision[:, 0],
            "precision_high": of_precision[:, 1],
        }
    )


def confusion(predictions: Predictions) -> pd.DataFrame:
    """One row per pair of classes: actual, predicted (names), count. Zeros are omitted for more than `WHOLE` classes.

    `dvc plots` needs this long form; `table.pivot(index="actual", columns="predicted", values="count")` is the matrix.
    """
    counts = predictions.confusion
    pairs = np.argwhere((counts > 0) | (len(counts) <= WHOLE))
    return _named(predictions, pairs)


def confusions(predictions: Predictions) -> pd.DataFrame:
    """One row per pair of a label and another prediction that occurs, the largest count first.

    Columns: actual, predicted (names), count, share (of the label's images).
    """
    counts = predictions.confusion
    pairs = np.argwhere((counts > 0) & ~np.eye(len(counts), dtype=bool))
    count = counts[pairs[:, 0], pairs[:, 1]]
    share = count / np.maximum(counts.sum(axis=1)[pairs[:, 0]], 1)
    order = np.lexsort((-share, -count))  # stable: then in the classes' order
    return _named(predictions, pairs[order]).assign(share=share[order])


def _named(predictions: Predictions, pairs: np.ndarray) -> pd.DataFrame:
    names = np.array(predictions.class_names, dtype=object)
    counts = predictions.confusion[pairs[:, 0], pairs[:, 1]]
    return pd.DataFrame({"actual": names[pairs[:, 0]], "predicted": names[pairs[:, 1]], "count": counts})


def prediction_table(predictions: Predictions, paths: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per image: index (in the split), path, label, predicted, p_0 .. p_<K-1> (float32, one per class).

    path: as the data set names the image; missing for data sets whose images are not files.
    """
    table = pd.DataFrame(
        {
            "index": np.arange(len(predictions)),
            "path": _paths(paths, np.arange(len(predictions))),
            "label": predictions.labels,
            "predicted": predictions.predicted,
        }
    )
    columns = {
        f"p_{number}": exp(each).astype(np.float32) for number, each in enumerate(predictions.log_probabilities.T)
    }
    return table.join(pd.DataFrame(columns))


def misclassified(predictions: Predictions, count: int, paths: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per image of `most_confident_errors`.

    Columns: index (in the split), path (as in `prediction_table`), label, predicted (names), probability.
    """
    shown, names = most_confident_errors(predictions, count), np.array(predictions.class_names, dtype=object)
    return pd.DataFrame(
        {
            "index": shown,
            "path": _paths(paths, shown),
            "label": names[predictions.labels[shown]],
            "predicted": names[predictions.predicted[shown]],
            "probability": predictions.top_probability[shown],
        }
    )


def _paths(paths: Sequence[str] | None, indices: np.ndarray) -> pd.Series[str]:
    """A column of strings, also without paths."""
    found = np.array([paths[index] if paths else None for index in indices], dtype=object)
    return pd.Series(found, dtype="string")
