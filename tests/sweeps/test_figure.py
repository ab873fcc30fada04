"""The picture of a sweep, drawn from real values; equal input gives equal bytes."""

import pytest

from classifier.sweeps.experiments import Experiment, Outcome
from classifier.sweeps.figure import _places, parallel


def experiment(number, accuracy, **values):
    metrics = {} if accuracy is None else {"validation_accuracy": accuracy}
    return Experiment(f"sweep-{number}", values), Outcome("finished", "run", metrics=metrics)


RESULTS = [
    experiment(1, 0.9, rate=0.001, optimizer="sgd", batch=32),
    experiment(2, 0.98, rate=0.1, optimizer="adamw", batch=32),
    experiment(3, None, rate=0.01, optimizer="sgd", batch=32),
]


def test_the_picture_is_a_png_with_the_same_bytes_each_time():
    picture = parallel(RESULTS, "validation_accuracy")
    assert picture.startswith(b"\x89PNG")
    assert picture == parallel(RESULTS, "validation_accuracy")
    other = experiment(3, 0.95, rate=0.01, optimizer="sgd", batch=32)
    assert picture != parallel([*RESULTS[:2], other], "validation_accuracy")


def test_numbers_keep_their_distances_by_decades_where_they_span_one():
    assert _places([0.001, 0.01, 0.1])[0] == pytest.approx([0, 0.5, 1])
    assert _places([1, 2, 5])[0] == pytest.approx([0, 0.25, 1])
    assert _places(["sgd", "adamw", "sgd"]) == ([1.0, 0.0, 1.0], [(0.0, "adamw"), (1.0, "sgd")])
    assert _places([3, 3])[0] == [0, 0]
