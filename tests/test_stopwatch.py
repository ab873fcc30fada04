"""Seconds of training, over all attempts and of each seed."""

import json
from types import SimpleNamespace

import pytest

from classifier.training import stopwatch
from classifier.training.history import Row
from classifier.training.stopwatch import Stopwatch

WINDOW, END = Row(1, 1, 32, 0.1, 2.0), Row(2, 1, 64, 0.1, 2.0, 2.0)


@pytest.fixture
def clock(monkeypatch):
    """One whose time the test sets."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_what_was_killed_goes_on_from_what_it_took(clock, tmp_path):
    first = Stopwatch(tmp_path, 1, 1)
    clock.now += 10
    assert first.seconds(0, WINDOW) == 10
    clock.now += 100_000  # dead, or the machine was started anew
    again = Stopwatch(tmp_path, 1, 1)
    clock.now += 5
    assert again.seconds(0, END) == again.total == 15


def test_a_seed_begins_with_the_training_or_in_the_place_of_one_that_has_ended(clock):
    """Two at a time, as two processes train them; a single window is no less than what it took."""
    watch = Stopwatch(None, 1, 2)
    clock.now += 4
    assert [watch.seconds(seed, END) for seed in (0, 1)] == [4, 4]
    clock.now += 3
    assert [watch.seconds(seed, END) for seed in (2, 3)] == [3, 3]
    assert watch.total == 7


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '{"total": "x"}'])
def test_what_a_power_cut_left_counts_for_nothing(clock, tmp_path, content):
    (tmp_path / "seconds.json").write_text(content)
    watch = Stopwatch(tmp_path, 1, 1)
    clock.now += 2
    assert watch.seconds(0, END) == 2
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"0": 2, "total": 2}
