"""reports/evaluate/: which files there are, what they hold, and that their bytes depend on the input alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from classifier.evaluation.corruptions import KINDS
from classifier.evaluation.metrics import evaluate, exp
from classifier.evaluation.report import Evaluation, write_evaluation
from classifier.evaluation.temperature import fit_temperature
from classifier.project.files import sha256_of
from tests.evaluation.samples import evaluation_of, history, noisy_predictions, params, predictions_of
from tests.samples import COSTS, ROOT

FILES = {
    *("metrics.json", "summary.json", "report.html", "per_class.csv", "confusion.csv", "confusions.csv"),
    *("calibration.csv", "misclassified.csv", "robustness.csv", "predictions.parquet", "misclassified.png"),
    *("confusion.png", "calibration.png", "curves.png", "robustness.png"),
}
NAMES = ["cat, big", "dog", "déer"]
PREDICTIONS = noisy_predictions(47, NAMES, absent=[2])
VALIDATION = noisy_predictions(31, NAMES, seed=8)
RIGHT = np.random.default_rng(0).random((40, 47)) < 0.7


def whole(**values: Any) -> Evaluation:
    """An evaluation of everything that a run can have; class 2 has no test images."""
    known = {"validation": VALIDATION, "right": RIGHT, "paths": [f"test/{number}.jpg" for number in range(47)]}
    return evaluation_of(PREDICTIONS, **known | values)


def write(folder: Path, **values: Any) -> dict[str, float]:
    return write_evaluation(folder, whole(**values), params(corruptions=list(KINDS)))[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "evaluate"
    write(folder)
    return folder


def test_exactly_these_files_and_each_is_explained(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    assert all(name in (write_evaluation.__doc__ or "") for name in FILES)


def test_a_single_image_in_colour_without_validation_paths_or_corruptions(tmp_path: Path) -> None:
    metrics, of_seeds = write_evaluation(tmp_path / "a", evaluation_of(noisy_predictions(1, NAMES), 3, 200), params())
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    assert metrics == evaluate(noisy_predictions(1, NAMES), 0.95, 10)
    assert of_seeds == {}
    assert pd.read_csv(tmp_path / "a/robustness.csv").empty
    assert pd.read_csv(tmp_path / "a/calibration.csv").filter(like="scaled_").isna().all(axis=None)


def metrics_of(folder: Path) -> dict[str, float]:
    """metrics.json, whose names are MLflow's."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all(name.startswith("test/") for name in metrics)
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def test_metrics_are_few_without_constants_and_have_all_their_digits(written: Path) -> None:
    metrics = metrics_of(written)
    assert set(metrics) == {
        *("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "macro_f1", "roc_auc", "loss"),
        *("expected_calibration_error", "corrupted_accuracy"),
        *(f"corrupted_accuracy/{kind}" for kind in KINDS),
    }
    expected = evaluate(PREDICTIONS, 0.95, 10)
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["corrupted_accuracy"] == pytest.approx(RIGHT.mean())


def test_the_probabilities_are_those_of_the_model_not_of_the_temperature(written: Path) -> None:
    table = pd.read_parquet(written / "predictions.parquet")
    assert np.array_equal(table.filter(like="p_"), exp(PREDICTIONS.log_probabilities).astype(np.float32))
    assert json.loads((written / "summary.json").read_text())["temperature"] == fit_temperature(VALIDATION) != 1


def test_the_summary_says_what_the_metrics_belong_to(written: Path) -> None:
    summary = json.loads((written / "summary.json").read_text())
    assert 0 <= summary.pop("scaled_calibration_error") < 1
    assert summary.pop("temperature") > 0
    assert summary == {
        "dataset": "digits",
        "classes": 3,
        "images": {"train": 47, "validation": 47, "test": 47},
        "confidence": 0.95,
        "network": "lenet5",
        "pretrained": None,
        **COSTS.summary(),
        "seed": 0,
        "weights_sha256": "2" * 64,
        "data_sha256": dict.fromkeys(("train", "validation", "test"), "1" * 64),
    }


def test_csv_files_read_back_as_they_were(written: Path) -> None:
    per_class, confusion, bins, wrong, confusions = (
        pd.read_csv(written / f"{name}.csv")
        for name in ("per_class", "confusion", "calibration", "misclassified", "confusions")
    )
    metrics = metrics_of(written)
    assert per_class["name"].tolist() == NAMES
    assert (
        per_class["support"].sum()
        == confusion["count"].sum()
        == bins["count"].sum()
        == bins["scaled_count"].sum()
        == 47
    )
    assert (confusion["actual"] == confusion["predicted"]) @ confusion["count"] == round(metrics["accuracy"] * 47)
    assert confusions["count"].sum() == 47 - round(metrics["accuracy"] * 47)
    top = PREDICTIONS.top_probability
    assert bins["confidence"].iloc[-1] == pytest.approx(top[top > 0.9].mean(), rel=1e-14)
    assert bins["accuracy"].isna().tolist() == (bins["count"] == 0).tolist()
    assert wrong["path"].tolist() == [f"test/{index}.jpg" for index in wrong["index"]]
    for path in written.glob("*.csv"):
        assert b"\r" not in path.read_bytes()
        assert "nan" not in path.read_text(encoding="utf-8").lower()
        assert "<na>" not in path.read_text(encoding="utf-8").lower()
        assert path.read_bytes().endswith(b"\n")


def test_predictions_have_one_schema_with_and_without_paths(written: Path, tmp_path: Path) -> None:
    write(tmp_path / "a", paths=None)
    with_paths, without = (
        pyarrow.parquet.read_schema(folder / "predictions.parquet") for folder in (written, tmp_path / "a")
    )
    assert with_paths.remove_metadata() == without.remove_metadata()
    assert with_paths.names == ["index", "path", "label", "predicted", "p_0", "p_1", "p_2"]
    table = pd.read_parquet(written / "predictions.parquet")
    assert table["path"].tolist() == [f"test/{number}.jpg" for number in range(47)]
    assert np.array_equal(table["label"], PREDICTIONS.labels)
    assert np.array_equal(table["predicted"], PREDICTIONS.predicted)


def test_another_process_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.evaluation.test_report import write; write(Path(sys.argv[1]))"
    )
    elsewhere = os.environ | {"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "5"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True, cwd=ROOT, env=elsewhere)
    assert {path.name: sha256_of(path) for path in (tmp_path / "a").iterdir()} == {
        path.name: sha256_of(path) for path in written.iterdir()
    }


def test_params_are_followed(tmp_path: Path) -> None:
    wide, narrow = (
        write_evaluation(tmp_path / name, whole(right=RIGHT[:5]), each)[0]
        for name, each in [
            ("a", params(corruptions=["jpeg"])),
            ("b", params(corruptions=["jpeg"], confidence=0.8, calibration_bins=3, misclassified=1)),
        ]
    )
    assert [len(pd.read_csv(tmp_path / name / "calibration.csv")) for name in "ab"] == [10, 3]
    assert [len(pd.read_csv(tmp_path / name / "misclassified.csv")) for name in "ab"] == [4, 1]
    assert pd.read_csv(tmp_path / "a/robustness.csv")["corruption"].tolist() == ["jpeg"] * 5
    assert wide["accuracy_low"] < narrow["accuracy_low"]
    assert "corrupted_accuracy/jpeg" in wide
    assert "corrupted_accuracy" not in wide  # it means all eight kinds


def test_several_seeds_have_their_mean_its_interval_and_a_row_each(tmp_path: Path) -> None:
    seeds = {0: PREDICTIONS, 1: predictions_of(PREDICTIONS.labels, NAMES, wrong=range(20))}
    evaluation = replace(whole(), seeds=seeds, histories={0: history(), 1: history(1.2)})
    metrics, of_seeds = write_evaluation(tmp_path / "a", evaluation, params(corruptions=list(KINDS)))
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES | {"replicas.csv"}
    accuracies = [each.right.mean() for each in seeds.values()]
    assert metrics["accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert metrics["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert 0 <= metrics["accuracy_mean_low"] < metrics["accuracy_mean"] < metrics["accuracy_mean_high"] <= 1
    table = pd.read_csv(tmp_path / "a/replicas.csv")
    assert table["accuracy"].tolist() == accuracies
    assert of_seeds[1] == evaluate(seeds[1], 0.95, 10)
    text = (tmp_path / "a/report.html").read_text()
    assert f'<div class="accuracy">{metrics["accuracy_mean"]:.2%}</div>' in text  # the mean comes first
    assert "of 2 seeds" in text


@pytest.mark.parametrize(("classes", "channels", "size"), [(2, 1, 32), (10, 3, 32), (100, 3, 200), (1000, 1, 64)])
def test_any_number_of_classes_any_size_and_colour(tmp_path: Path, classes: int, channels: int, size: int) -> None:
    predictions = noisy_predictions(120, [f"animals/{number}" for number in range(classes)])
    evaluation = evaluation_of(predictions, channels, size, right=RIGHT[:5, :1].repeat(120, axis=1))
    metrics, _ = write_evaluation(tmp_path / "a", evaluation, params(corruptions=["noise"]))
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    assert len(pd.read_csv(tmp_path / "a/per_class.csv")) == classes
    assert pd.read_csv(tmp_path / "a/confusion.csv")["count"].sum() == 120
    assert len(pd.read_parquet(tmp_path / "a/predictions.parquet").columns) == classes + 4
    assert ("top5_accuracy" in metrics) == (classes > 5)
    assert (tmp_path / "a/report.html").stat().st_size < 2_000_000
