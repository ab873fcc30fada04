"""A stack of models: each is its seed trained alone, within float32's rounding."""

import pytest
import torch

from classifier.networks.model import Classifier, LeNet5
from classifier.training import stack as vectorized
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import DivergedError
from classifier.training.history import COLUMNS
from classifier.training.loop import fit
from tests.samples import StoppedError, digits_split, stop_after, train_params

CPU = torch.device("cpu")
TRAIN, VALIDATION = digits_split(100), digits_split(50, start=300)
SEEDS = (3, 4, 5)
CLOSE = 1e-6  # a weight's distance from that of the seed alone, after 8 steps; 2e-8 was seen


def fit_together(classifiers, params, report, checkpoints=None):
    vectorized.fit_together(classifiers, TRAIN, VALIDATION, params, CPU, report, checkpoints, capture=lambda step: step)


def new_classifier(seed):
    torch.manual_seed(seed)
    return Classifier(LeNet5(1, 10), [0.24], [0.33])


def weights(classifier):
    return torch.cat([parameter.detach().flatten() for parameter in classifier.cpu().parameters()])


def trained(params, checkpoints=None, report=None):
    classifiers = {seed: new_classifier(seed) for seed in SEEDS}
    reported = []
    fit_together(classifiers, params, report or (lambda *row: reported.append(row)), checkpoints)
    return classifiers, reported


@pytest.mark.parametrize(
    ("values", "close"),
    [
        ({"nesterov": True, "shift": 2, "schedule": "one_cycle", "label_smoothing": 0.1}, CLOSE),
        ({"momentum": 0.0, "rotation": 10.0, "scale": 0.1}, CLOSE),
        ({"precision": "bfloat16"}, 2e-3),
        # AdamW divides by the gradient's size, so that a rounding error of a tiny gradient becomes one of the step.
        ({"optimizer": "adamw", "learning_rate": 0.001, "epochs": 1, "batch_size": 50}, 1e-4),
        ({"optimizer": "muon", "learning_rate": 0.001, "epochs": 1, "batch_size": 50}, 1e-4),
    ],
)
def test_each_model_is_its_seed_alone(values, close):
    params = train_params(**{"seed": 3, "epochs": 2, "batch_size": 30, "log_every": 2} | values)
    classifiers, reported = trained(params)
    for seed, classifier in classifiers.items():
        alone, rows = new_classifier(seed), []
        own = params.model_copy(update={"seed": seed})
        fit(alone, TRAIN, VALIDATION, own, CPU, lambda seed, row, rows=rows: rows.append(row))
        torch.testing.assert_close(weights(classifier), weights(alone), rtol=0, atol=close)
        found = [row for reporter, row in reported if reporter == seed]
        assert len(found) == len(rows)
        for one, other in zip(found, rows, strict=True):
            numbers = [(getattr(one, name), getattr(other, name)) for name in COLUMNS]
            assert all(
                a == (b if b is None else pytest.approx(b, rel=1e-3 if close > CLOSE else 1e-5)) for a, b in numbers
            )
    assert not torch.equal(weights(classifiers[3]), weights(classifiers[4]))


def test_same_seeds_same_bits():
    params = train_params(seed=3, epochs=2, shift=1)
    first, second = trained(params), trained(params)
    assert all(torch.equal(weights(first[0][seed]), weights(second[0][seed])) for seed in SEEDS)
    assert first[1] == second[1]


def test_a_model_that_diverges_is_named_and_stops_all_before_their_update():
    params = train_params(seed=3, epochs=2, batch_size=30, log_every=2)
    classifiers = {seed: new_classifier(seed) for seed in SEEDS}
    with torch.no_grad():
        classifiers[4].network.fc3.weight.fill_(1e38)
    before = {seed: weights(classifier) for seed, classifier in classifiers.items()}
    with pytest.raises(DivergedError, match=r"^seed 4: loss or gradients are not finite at step 1 \(epoch 1\)"):
        fit_together(classifiers, params, lambda seed, row: None)
    assert all(torch.equal(weights(classifiers[seed]), before[seed]) for seed in SEEDS)


def test_one_checkpoint_holds_the_stack(tmp_path):
    params = train_params(seed=3, epochs=2, batch_size=30, log_every=2, shift=1)
    whole, whole_rows = trained(params)

    for stop in (2, 3, 7, 11):  # of 12 rows: within a window's rows, at its end, within the second epoch
        killed = Checkpoints(tmp_path / str(stop), every=1)
        with pytest.raises(StoppedError):
            trained(params, killed, stop_after(stop))
        killed.wait()
        resumed, resumed_rows = trained(params, Checkpoints(tmp_path / str(stop), every=1))
        assert all(torch.equal(weights(resumed[seed]), weights(whole[seed])) for seed in SEEDS)
        assert resumed_rows == whole_rows


def test_the_parameters_of_a_stack_are_those_of_its_models():
    classifiers = {seed: new_classifier(seed) for seed in SEEDS}
    engine = vectorized.VectorizedEngine(classifiers, train_params(), CPU)
    assert engine.parameters["network.fc1.weight"].shape == (3, 120, 400)
    engine.parameters["network.fc1.weight"].data[1] += 1
    expected = new_classifier(4).network.fc1.weight + 1
    assert torch.equal(classifiers[4].network.fc1.weight, expected)
    assert torch.equal(classifiers[5].network.fc1.weight, new_classifier(5).network.fc1.weight)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_stack_on_a_gpu_gives_the_same_bits_twice_and_those_of_one_by_one_nearly(cuda, optimizer, capsys):
    params = train_params(seed=3, epochs=1, batch_size=50, learning_rate=0.001, shift=1, optimizer=optimizer)
    found = []
    for _ in range(2):
        classifiers = {seed: new_classifier(seed) for seed in SEEDS}
        vectorized.fit_together(classifiers, TRAIN, VALIDATION, params, cuda, lambda seed, row: None)
        found.append([weights(classifier) for classifier in classifiers.values()])
    assert not capsys.readouterr().err  # it was a graph
    for seed, first, second in zip(SEEDS, *found, strict=True):
        assert torch.equal(first, second)
        alone = new_classifier(seed)
        fit(alone, TRAIN, VALIDATION, params.model_copy(update={"seed": seed}), cuda, lambda seed, row: None)
        torch.testing.assert_close(first, weights(alone), rtol=0, atol=1e-4)
