"""reports/train/: which files there are, and what several seeds say together."""

import json
from dataclasses import replace

import pytest
from scipy.stats import t

from classifier.training.history import HistoryRow, best_rows, read_history
from classifier.training.report import (
    read_costs,
    read_histories,
    read_layers,
    summary_metrics,
    verify_training,
    write_training,
)
from classifier.training.summary import summarize
from tests.samples import COSTS

ONE = [HistoryRow(10, 1, 320, 0.1, 2.3), HistoryRow(12, 1, 340, 0.1, None, 2.0, 1.9, 0.8)]
TWO = [HistoryRow(10, 1, 320, 0.1, 2.2), HistoryRow(12, 1, 340, 0.1, None, 1.0, 1.7, 0.9)]


FILES = {"history.csv", "layers.csv", "metrics.json", "summary.json", "manifest.json"}


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_seed(tmp_path):
    write_training(tmp_path, {7: ONE}, 7, COSTS, picture=b"png")
    assert files(tmp_path) == FILES | {"augmented.png"}
    assert (tmp_path / "augmented.png").read_bytes() == b"png"
    write_training(tmp_path, {7: ONE}, 7, COSTS)
    assert files(tmp_path) == FILES
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "train/running_loss": 2.3,
        "train/loss": 2.0,
        "validation/loss": 1.9,
        "validation/accuracy": 0.8,
    }
    costs = {"parameters": 61706, "multiply_adds": 416520, "weights_bytes": 246824, "activations_bytes": 115760}
    assert json.loads((tmp_path / "summary.json").read_text()) == costs | {"kept_epoch": 1}
    assert read_costs(tmp_path) == costs
    assert read_layers(tmp_path) == []


def test_the_costs_of_a_report_of_an_earlier_version_are_read(tmp_path):
    (tmp_path / "metrics.json").write_text('{"parameters": 61706, "train/loss": 2.0}')
    assert read_costs(tmp_path) == {"parameters": 61706}


def test_the_best_of_validation_need_not_be_the_last(tmp_path):
    curves = [(10, 1.9, 0.7), (20, 1.2, 0.8), (30, 1.3, 0.9), (40, 1.4, 0.6)]
    rows = [HistoryRow(step, step // 10, step, 0.1, 2.0, 2.0, *results) for step, *results in curves]
    assert {name: row.step for name, row in best_rows(rows).items()} == {
        "validation_loss": 20,
        "validation_accuracy": 30,
    }
    write_training(tmp_path, {7: rows}, 7, COSTS)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["validation/loss"], metrics["validation/accuracy"]) == (1.4, 0.6)


def test_without_a_validation_split_its_metrics_are_null(tmp_path):
    write_training(tmp_path, {7: [HistoryRow(10, 1, 320, 0.1, 2.3, 2.0)]}, 7, COSTS)
    assert json.loads((tmp_path / "metrics.json").read_text())["validation/loss"] is None


def test_several_seeds(tmp_path):
    write_training(tmp_path, {7: ONE, 8: TWO}, 8, COSTS)
    assert files(tmp_path) == {
        *FILES,
        *("replicas.csv", "replicas/seed-7.csv", "replicas/seed-8.csv"),
    }
    assert read_history(tmp_path / "history.csv") == TWO
    assert read_histories(tmp_path, [7, 8]) == {7: ONE, 8: TWO}
    assert (tmp_path / "replicas.csv").read_text() == (
        "seed,train_loss,validation_loss,validation_accuracy\n7,2.0,1.9,0.8\n8,1.0,1.7,0.9\n"
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["validation/accuracy"] == 0.9
    assert metrics["validation/accuracy_mean"] == pytest.approx(0.85)
    assert metrics["train/loss_std"] == pytest.approx(0.5**0.5)


def test_the_interval_of_a_mean_does_not_leave_what_is_possible():
    rows = {seed: [HistoryRow(12, 1, 340, 0.1, 2.0, 0.1, 0.1 + seed / 5, 0.7 + seed / 4)] for seed in (0, 1)}
    metrics = summary_metrics(rows)
    assert metrics["validation/accuracy_high"] == 1
    assert metrics["validation/loss_low"] == 0
    assert metrics["validation/loss_high"] > 1


def test_the_interval_is_students_t():
    found = summarize([1.0, 2.0, 4.0])
    low, high = t.interval(0.95, 2, found["mean"], found["std"] / 3**0.5)
    assert (found["low"], found["high"]) == (max(low, 0), pytest.approx(high))


def test_without_a_validation_split_there_is_no_spread_of_it():
    bare = [HistoryRow(12, 1, 340, 0.1, 2.0, 2.0)]
    assert set(summary_metrics({7: bare, 8: bare})) == {f"train/loss_{name}" for name in ("mean", "std", "low", "high")}
    assert summary_metrics({7: bare}) == {}


def test_one_seed_after_several_leaves_nothing_of_them(tmp_path):
    write_training(tmp_path / "train", {7: ONE, 8: TWO}, 8, COSTS)
    write_training(tmp_path / "train", {7: ONE}, 7, COSTS)
    assert files(tmp_path) == {f"train/{name}" for name in FILES}


@pytest.mark.parametrize("name", ["history.csv", "metrics.json", "replicas.csv", "replicas/seed-7.csv"])
def test_a_file_that_was_changed_or_is_missing_is_named(tmp_path, name):
    write_training(tmp_path, {7: ONE, 8: TWO}, 8, COSTS)
    verify_training(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.8").replace(b"2.3", b"2.2"))
    with pytest.raises(ValueError, match=f"{name} has SHA-256 .*, manifest.json says .*: run dvc repro -f train"):
        verify_training(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist: run dvc repro train"):
        verify_training(tmp_path)


def test_the_metrics_are_those_of_the_epoch_whose_weights_are_kept(tmp_path):
    losses = [0.5, 0.3, 0.4]
    rows = [HistoryRow(10 * n, n, 100 * n, 0.1, 1.0, 1.0 / n, loss, 1 - loss) for n, loss in enumerate(losses, start=1)]
    write_training(tmp_path, {7: rows}, 7, COSTS, "validation_loss")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["validation/loss"], metrics["train/loss"]) == (0.3, 0.5)
    assert json.loads((tmp_path / "summary.json").read_text())["kept_epoch"] == 2
    write_training(tmp_path, {7: rows}, 7, COSTS)
    assert json.loads((tmp_path / "metrics.json").read_text())["validation/loss"] == 0.4
    assert json.loads((tmp_path / "summary.json").read_text())["kept_epoch"] == 3
    other = [replace(row, validation_loss=0.2 + row.epoch / 10) for row in rows]
    assert summary_metrics({7: rows, 8: other}, "validation_loss")["validation/loss_mean"] == pytest.approx(0.3)
