"""What was trained, how good it is, which run it is, and what to type next, from the workspace and MLflow."""

import json

import pytest

from classifier.commands.application import call
from tests.recorded import SeedsWorkspace, Workspace

pytestmark = pytest.mark.usefixtures("workspace")
METRICS = {"test/accuracy": 0.9, "test/accuracy_low": 0.8, "test/accuracy_high": 0.95}
SEVERAL = {"test/accuracy_mean": 0.85, "test/accuracy_mean_low": 0.7, "test/accuracy_mean_high": 0.99}


def write(outputs, metrics, summary=None):
    (outputs.reports / "metrics.json").write_text(json.dumps(metrics))
    if summary:
        (outputs.reports / "summary.json").write_text(json.dumps(summary))


def shown(capsys, *arguments):
    capsys.readouterr()
    call(["results", *arguments])
    return capsys.readouterr().out


def test_it_names_the_run_and_its_page_and_fits_80_columns(capsys):
    outputs = Workspace()
    run = outputs.train()
    outputs.evaluate()
    write(outputs, METRICS, {"images": {"test": 57}, "confidence": 0.95})
    text = shown(capsys)
    assert "test accuracy  90.00% on digits (95% interval 80.00% to 95.00%, 57 images)\n" in text
    assert f"digits lenet5 90.0% {text.split('lenet5 90.0% ')[1].split(',')[0]}, id {run[:8]}\n" in text
    assert f"make ui, then #/experiments/1/runs/{run}\n" in text
    assert "classifier promote latest" in text
    assert max(map(len, text.splitlines())) <= 80
    found = json.loads(shown(capsys, "--json"))
    assert (found["run"]["id"], found["images"], found["confidence"]) == (run, 57, 0.95)


def test_of_several_seeds_the_mean_comes_first(capsys):
    outputs = SeedsWorkspace()
    write(outputs, METRICS | SEVERAL, {"images": {"test": 57}, "confidence": 0.95})
    lines = shown(capsys).splitlines()
    assert lines[1] == "test accuracy  85.00% on digits, the mean of 2 seeds"
    assert lines[3] == "the model      is seed 5, the median on validation: 90.00%"


def test_metrics_of_an_earlier_version_are_read_and_a_missing_run_is_said(capsys):
    outputs = Workspace()
    write(outputs, {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "n": 57, "confidence": 0.9})
    text = shown(capsys)
    assert "(90% interval 80.00% to 95.00%, 57 images)" in text
    assert "no run has these weights: classifier record makes one" in text


def test_a_folder_of_images_is_called_by_its_own_name(capsys):
    outputs = Workspace()
    write(outputs, METRICS, {"dataset": "photos", "images": {"test": 57}, "confidence": 0.95})
    assert "90.00% on photos (" in shown(capsys)
    assert json.loads(shown(capsys, "--json"))["dataset"] == "photos"


def test_a_corrupt_file_is_one_line(capsys):
    outputs = Workspace()
    write(outputs, {"test/accuracy": 0.9})
    with pytest.raises(ValueError, match=r"reports/evaluate is corrupt .*: run dvc repro -f evaluate$"):
        shown(capsys)
