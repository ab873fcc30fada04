"""The stage evaluate on small outputs: which split each number comes from, of one model and of several seeds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from classifier.evaluation.metrics import Predictions
from classifier.evaluation.temperature import fit_temperature
from classifier.networks.inference import logits_of
from classifier.networks.model_dir import build, write_model
from classifier.training.report import write_training
from stages.evaluate import evaluate
from tests.recorded import ROWS, written
from tests.samples import COSTS, DIGITS, digits_split, file_params, write_digits

DATA, MODEL, TRAINING, REPORTS = (Path(name) for name in ("data/normalized", "model", "training", "reports"))
TEST, VALIDATION = digits_split(57, 1000), digits_split(50, 100)


@pytest.fixture
def run(workspace):
    """`run(validation=50, seeds=(3,))`: metrics.json and the line that is printed, of models without training."""

    def evaluated(validation: int = 50, seeds: tuple[int, ...] = (3,)) -> tuple[dict[str, float], str]:
        meta = write_digits(DATA, validation=validation)
        write_model(MODEL, {seed: build(meta, seed) for seed in seeds}, seeds[0], meta)
        write_training(TRAINING, dict.fromkeys(seeds, ROWS), seeds[0], COSTS)
        params = file_params()
        params = params.model_copy(
            update={"evaluate": params.evaluate.model_copy(update={"corruptions": ["contrast"]})}
        )
        with written("evaluate", params) as record:
            line = evaluate(params, DATA, MODEL, TRAINING, REPORTS, record)
        metrics = json.loads((REPORTS / "metrics.json").read_text())
        return {name.removeprefix("test/"): value for name, value in metrics.items()}, line

    return evaluated


def predicted(seed, split):
    with torch.inference_mode():
        logits = logits_of(build(write_digits(DATA), seed).eval(), torch.from_numpy(split.images))
    return Predictions(split.labels, logits.double().log_softmax(1).numpy(), DIGITS)


def test_accuracy_is_that_of_the_test_split_and_the_temperature_that_of_the_validation_split(run):
    metrics, line = run()
    test, validation = predicted(3, TEST), predicted(3, VALIDATION)
    assert metrics["accuracy"] == test.right.mean()
    assert line.startswith(f"digits: accuracy {test.right.mean():.2%}")
    assert "57 images" in line
    temperature = json.loads((REPORTS / "summary.json").read_text())["temperature"]
    assert temperature == fit_temperature(validation) != fit_temperature(test)
    table = pd.read_parquet(REPORTS / "predictions.parquet")
    assert np.array_equal(table["predicted"], test.predicted)
    assert len(pd.read_csv(REPORTS / "robustness.csv")) == 5
    assert not (REPORTS / "replicas.csv").exists()


def test_of_a_large_test_split_a_sample_is_corrupted(run, monkeypatch):
    monkeypatch.setattr("classifier.evaluation.robustness.IMAGES", 20)
    run()
    assert pd.read_csv(REPORTS / "robustness.csv")["images"].tolist() == [20] * 5
    assert "Accuracy on 20 corrupted test images" in (REPORTS / "report.html").read_text()


def test_without_a_validation_split_there_is_no_temperature(run):
    metrics, _ = run(validation=0)
    assert json.loads((REPORTS / "summary.json").read_text())["temperature"] is None
    assert "accuracy" in metrics


def test_each_seed_is_evaluated_and_the_first_is_the_models(run):
    metrics, _ = run(seeds=(3, 1))
    table = pd.read_csv(REPORTS / "replicas.csv")
    assert table["seed"].tolist() == [1, 3]
    assert table["accuracy"].tolist() == [predicted(seed, TEST).right.mean() for seed in (1, 3)]
    assert metrics["accuracy"] == predicted(3, TEST).right.mean()
    assert metrics["accuracy_mean"] == pytest.approx(table["accuracy"].mean())
    assert "about the model of seed 3, the median" in (REPORTS / "report.html").read_text()
