"""Optuna's proposals from a real study in SQLite; the outcomes are computed from the values."""

import math

import pytest

from classifier.schema.ranges import Choices, Range
from classifier.sweeps.experiments import Outcome
from classifier.sweeps.search import Search
from tests.samples import file_params


def params(**sweep):
    settings = {
        "search": {
            "train.learning_rate": Range(low=0.001, high=1, log=True),
            "train.batch_size": Range(low=8, high=64, log=False),
            "train.optimizer": Choices(choices=["sgd", "adamw"]),
        }
    }
    return file_params().model_copy(update={"sweep": file_params().sweep.model_copy(update=settings | sweep)})


def outcome(experiment):
    """Best at 0.1."""
    distance = abs(math.log10(experiment.values["train.learning_rate"]) + 1)
    return Outcome("finished", "run", metrics={"validation_accuracy": 1 - distance, "validation_loss": distance})


def search(tmp_path, total, fixed=None, **sweep):
    return Search(params(**sweep), fixed or {}, total, "sweep-1", tmp_path / "study.db")


def carry_on(study, count):
    tried = []
    while len(tried) < count and (experiment := study.next()):
        study.tell(experiment, outcome(experiment))
        tried.append(experiment)
    return tried


def test_a_search_that_is_continued_tries_what_one_in_a_single_piece_tries(tmp_path):
    whole = carry_on(search(tmp_path / "whole", 12), 99)
    assert [experiment.name for experiment in whole] == [f"sweep-1-{number}" for number in range(12)]
    carry_on(search(tmp_path / "pieces", 5), 3)
    carry_on(search(tmp_path / "pieces", 5), 99)
    pieces = carry_on(search(tmp_path / "pieces", 12), 99)
    assert pieces == whole
    assert len({experiment.values["train.learning_rate"] for experiment in whole}) == 12  # no proposal comes again


def test_values_are_of_their_kind_and_in_their_range(tmp_path):
    for experiment in carry_on(search(tmp_path, 8, {"train.epochs": 2}), 99):
        values = experiment.values
        assert values["train.epochs"] == 2
        assert 0.001 <= values["train.learning_rate"] <= 1
        assert isinstance(values["train.batch_size"], int)
        assert 8 <= values["train.batch_size"] <= 64
        assert values["train.optimizer"] in ("sgd", "adamw")
        params().override(values)


def test_it_learns_what_is_better(tmp_path):
    study = search(tmp_path, 24, {"train.batch_size": 32, "train.optimizer": "sgd"}, metric="validation_loss")
    tried = carry_on(study, 99)
    distances = [outcome(experiment).metrics["validation_loss"] for experiment in tried]
    assert study.study.best_value == min(distances)
    assert sum(distances[16:]) / 8 < 0.5  # by chance it would be 1: the range goes from -2 to 1


def test_accuracy_is_made_large(tmp_path):
    study = search(tmp_path, 2)
    tried = carry_on(study, 2)
    assert study.study.best_value == max(outcome(experiment).metrics["validation_accuracy"] for experiment in tried)


def test_what_was_killed_is_tried_again_with_its_values_and_what_failed_is_not(tmp_path):
    study = search(tmp_path, 3)
    killed, failed, unknown = study.next(), study.next(), study.next()
    study.tell(killed, Outcome("killed", "run", "killed"))
    study.tell(failed, Outcome("failed", "run", "too high"))
    assert study.next() is None
    again = search(tmp_path, 4)
    assert [again.next() for _ in range(3)] == [killed, failed, unknown]  # the record says that `failed` is done
    for experiment in (killed, failed, unknown):
        again.tell(experiment, outcome(experiment))
    assert [trial.state.name for trial in again.study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert again.next().name == "sweep-1-3"
    assert again.next() is None


def test_a_result_without_the_metric_is_a_failure(tmp_path):
    study = search(tmp_path, 1)
    study.tell(study.next(), Outcome("finished", "run", metrics={"validation_accuracy": math.nan}))
    assert study.study.trials[0].state.name == "FAIL"


@pytest.mark.parametrize("name", ["lenet%20main", "what?", "a#b ü"])
def test_the_study_lies_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    carry_on(search(folder, 2), 2)
    assert [path.name for path in folder.iterdir()] == ["study.db"]
    assert list(tmp_path.iterdir()) == [folder]
