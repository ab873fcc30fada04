"""What a sweep tries, in its order and as a person reads it."""

from classifier.sweeps.experiments import Experiment, Grid, shown


def test_a_grid_numbers_its_experiments():
    plan = Grid([{"train.seed": seed} for seed in range(12)], "sweep-1")
    names = [plan.next().name for _ in range(12)]
    assert (names[0], names[-1], plan.next()) == ("sweep-1-01", "sweep-1-12", None)


def test_values_are_shown_short():
    assert (
        str(Experiment("x", {"a": 0.123456789, "b": None, "c": 1_000_000, "d": "sgd"}))
        == "a=0.1235 b=null c=1000000 d=sgd"
    )
    assert shown(1e-05) == "1e-05"
