"""reports/evaluate/: which files there are, what they hold, and that their bytes depend on the input alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from classifier.evaluation.metrics import Predictions, evaluate
from classifier.evaluation.report import write_evaluation
from classifier.params import EvaluateParams
from classifier.project.files import sha256_of
from tests.samples import ROOT

FILES = {
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "calibration.csv",
    "predictions.parquet",
    "misclassified.png",
    "confusion.png",
    "calibration.png",
    "curves.png",
}
HISTORY = pd.DataFrame(
    {
        "step": [10, 20],
        "epoch": [1, 1],
        "running_loss": [2.3, 1.9],
        "learning_rate": [0.1, 0.05],
        "validation_loss": [None, 1.8],
        "validation_accuracy": [None, 0.6],
    }
)
NAMES = ["cat, big", "dog", "déer"]


def case(n: int = 47, channels: int = 1) -> tuple[np.ndarray, Predictions]:
    """A classifier that is right about three times in four; class 2 has no images."""
    numbers = np.random.default_rng(7)
    labels = numbers.integers(0, 2, n)
    logits = numbers.normal(size=(n, 3))
    logits[np.arange(n), labels] += 2
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    images = numbers.integers(0, 256, (n, channels, 32, 32)).astype(np.uint8)
    return images, Predictions(labels, log_probabilities.astype(np.float32), NAMES)


def write(folder: Path, channels: int = 1) -> dict[str, float | int]:
    images, predictions = case(channels=channels)
    return write_evaluation(folder, images, predictions, {}, HISTORY, params())[0]


def params(confidence: float = 0.95, calibration_bins: int = 10, mistakes: int = 4) -> EvaluateParams:
    values = {"confidence": confidence, "calibration_bins": calibration_bins, "mistakes": mistakes}
    return EvaluateParams(device="cpu", batch_size=1, **values)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "evaluate"
    write(folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_exactly_these_files(tmp_path: Path, channels: int) -> None:
    metrics = write(tmp_path / "reports" / "evaluate", channels)
    assert {path.name for path in (tmp_path / "reports" / "evaluate").iterdir()} == FILES
    assert all(path.name in (write_evaluation.__doc__ or "") for path in (tmp_path / "reports" / "evaluate").iterdir())
    assert metrics == evaluate(case()[1], 0.95, 10) | {"confidence": 0.95}


def test_metrics_are_written_with_all_their_digits(written: Path) -> None:
    expected = evaluate(case()[1], 0.95, 10) | {"confidence": 0.95}
    assert json.loads((written / "metrics.json").read_text()) == expected


def test_csv_files_read_back_as_they_were(written: Path) -> None:
    names = ("per_class", "confusion", "calibration")
    per_class, confusion, bins = (pd.read_csv(written / f"{name}.csv") for name in names)
    metrics, (_, predictions) = json.loads((written / "metrics.json").read_text()), case()
    assert per_class["name"].tolist() == NAMES
    assert per_class["support"].sum() == confusion["count"].sum() == bins["count"].sum() == 47
    assert (confusion["actual"] == confusion["predicted"]) @ confusion["count"] == round(metrics["accuracy"] * 47)
    top = predictions.top_probability
    assert bins["confidence"].iloc[-1] == top[top > 0.9].mean()  # to the last digit
    assert bins["accuracy"].isna().tolist() == (bins["count"] == 0).tolist()
    assert list(per_class.columns) == ["class", "name", "precision", "recall", "f1", "support", "predicted"]
    assert list(confusion.columns) == ["actual", "predicted", "count"]
    assert list(bins.columns) == ["low", "high", "count", "confidence", "accuracy"]
    for path in written.glob("*.csv"):
        assert b"\r" not in path.read_bytes()
        assert "nan" not in path.read_text(encoding="utf-8").lower()
        assert path.read_bytes().endswith(b"\n")


def test_predictions_read_back_as_they_were(written: Path) -> None:
    table, (_, predictions) = pd.read_parquet(written / "predictions.parquet"), case()
    assert list(table.columns) == ["index", "label", "predicted", "p_0", "p_1", "p_2"]
    assert table["index"].tolist() == list(range(47))
    assert np.array_equal(table["label"], predictions.labels)
    assert np.array_equal(table["predicted"], predictions.predicted)
    assert np.array_equal(table.filter(like="p_"), predictions.probabilities.astype(np.float32))


def test_another_process_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path; from tests.evaluation.test_report import write; write(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert {path.name: sha256_of(path) for path in tmp_path.iterdir()} == {
        path.name: sha256_of(path) for path in written.iterdir()
    }


def test_calibration_has_as_many_rows_as_asked_and_the_picture_as_many_mistakes(tmp_path: Path) -> None:
    images, predictions = case()
    write_evaluation(tmp_path / "a", images, predictions, {}, HISTORY, params())
    write_evaluation(tmp_path / "b", images, predictions, {}, HISTORY, params(0.8, 3, 1))
    assert [len(pd.read_csv(tmp_path / name / "calibration.csv")) for name in "ab"] == [10, 3]
    narrow, wide = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ba")
    assert wide["accuracy_low"] < narrow["accuracy_low"]
    assert (tmp_path / "a" / "misclassified.png").read_bytes() != (tmp_path / "b" / "misclassified.png").read_bytes()
