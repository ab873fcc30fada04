"""What a sweep tries, in its order and as a person reads it, and which configuration is the best."""

from classifier.runs.leaderboard import leaderboard, results
from classifier.runs.reading import all_runs
from classifier.sweeps.experiments import Best, Experiment, Grid, best_of, shown
from tests.results import record

SWEEP = "f" * 32


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


def finished(rate, seed, accuracy, loss, test):
    """An experiment of the sweep that finished, and its run."""
    experiment = Experiment(f"sweep-1-{rate}-{seed}", {"train.learning_rate": rate, "train.seed": seed})
    tags = {"mlflow.parentRunId": SWEEP, "dvc.exp.name": experiment.name}
    metrics = {"validation/accuracy": accuracy, "validation/loss": loss}
    record(seed, accuracy=test, params={"train.learning_rate": rate}, tags=tags, metrics=metrics, predictions=False)
    return experiment


def best(experiments, metric="validation_accuracy"):
    runs = all_runs()
    return best_of(experiments, leaderboard(runs, SWEEP), results(runs, SWEEP), metric)


def test_the_best_is_the_configuration_with_the_best_mean_not_the_best_seed_nor_the_best_on_the_test(workspace):
    lucky = [finished(0.1, seed, accuracy, 0.3, 0.5) for seed, accuracy in enumerate([1.0, 0.5, 0.6])]
    steady = [finished(0.2, seed, accuracy, 0.4, 0.4) for seed, accuracy in enumerate([0.9, 0.8, 0.7])]
    cut_short = [finished(0.3, seed, 0.95, 0.1, 0.99) for seed in range(2)]  # the third seed failed
    found = best([*lucky, *steady, *cut_short])
    reach = 4.302653 * 0.1 / 3**0.5  # Student's t with 2 degrees of freedom; the deviation is 0.1
    assert (found.values, found.seeds, found.experiment) == ({"train.learning_rate": 0.2}, 3, "sweep-1-0.2-1")
    assert [round(value, 6) for value in (found.mean, found.low)] == [0.8, round(0.8 - reach, 6)]
    assert found.high == 1  # no accuracy is above
    assert str(found) == (
        "best validation accuracy: 80.00% (95% interval 55.16% to 100.00%, 3 seeds), train.learning_rate=0.2"
    )
    by_loss = best([*lucky, *steady], "validation_loss")
    assert (by_loss.values, by_loss.mean) == ({"train.learning_rate": 0.1}, 0.3)
    assert best([*lucky, *cut_short]).experiment == "sweep-1-0.1-2"  # of those that this command ran


def test_an_experiment_of_several_seeds_is_a_configuration(workspace):
    experiment = Experiment("sweep-1-1", {"train.seeds": 3})
    tags = {"mlflow.parentRunId": SWEEP, "dvc.exp.name": experiment.name, "mlflow.classifier.chosen_seed": "1"}
    parent = record(1, tags=tags, metrics={"validation/accuracy": 0.8}, predictions=False)
    for seed, accuracy in enumerate([0.7, 0.8, 0.9]):
        tags = {"mlflow.parentRunId": parent, "mlflow.classifier.seed": str(seed)}
        record(seed, tags=tags, metrics={"validation/accuracy": accuracy}, predictions=False)
    found = best([experiment])
    assert (round(found.mean, 6), found.seeds, found.experiment) == (0.8, 3, "sweep-1-1")
    assert found.values == {"train.seeds": 3}
    assert round(found.low, 6) == round(0.8 - 4.302653 * 0.1 / 3**0.5, 6)


def test_a_single_seed_has_no_interval(workspace):
    assert best([finished(0.1, 7, 0.5, 0.25, 0.5)], "validation_loss") == Best(
        {"train.learning_rate": 0.1}, "validation_loss", 0.25, None, None, 1, "sweep-1-0.1-7"
    )
    assert str(Best({}, "validation_accuracy", 0.5, None, None, 1, "a")) == (
        "best validation accuracy: 50.00% (one seed, no interval)"
    )
    assert str(best([finished(0.1, 7, 0.5, 0.25, 0.5)], "validation_loss")) == (
        "best validation loss: 0.25 (one seed, no interval), train.learning_rate=0.1"
    )


def test_without_a_validation_split_there_is_no_best(workspace):
    experiment = Experiment("sweep-1-1", {})
    record(tags={"mlflow.parentRunId": SWEEP, "dvc.exp.name": experiment.name}, predictions=False)
    assert best([experiment]) is None
