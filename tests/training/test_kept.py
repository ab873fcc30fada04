"""The weights that a training ends with: averaged, of the best epoch, early; clipped, balanced, with rates by layer."""

import numpy as np
import pytest
import torch

from classifier.networks.model import Classifier, LeNet5
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from classifier.training.kept import Average, Best
from classifier.training.loop import fit
from classifier.training.mixing import Targets
from classifier.training.steps import Steps, balanced
from tests.samples import StoppedError, digits_split, stop_after, train_params
from tests.training.test_buffers import CPU, TRAIN, VALIDATION, Normalized, digest, state_of, trained

EVERYTHING = {
    **{"ema": 0.9, "weights": "validation_loss", "clip": 0.5, "layer_decay": 0.3, "balance": "loss"},
    **{"per": "image", "shift": 1, "flip": 0.5, "crop": 0.7, "policy": "trivialaugment", "erase": 0.3},
    **{"mixup": 0.3, "cutmix": 1.0, "label_smoothing": 0.1, "schedule": "one_cycle", "learning_rate": 0.05},
}


@pytest.mark.parametrize(
    "values", [EVERYTHING, {**EVERYTHING, "optimizer": "adamw", "balance": "sampling", "ema": 0.0}]
)
def test_the_number_of_processes_changes_no_bit(values):
    alone = trained(Normalized, processes=1, **values)
    assert trained(Normalized, processes=2, **values) == alone
    assert trained(Normalized, processes=3, **values) == alone
    for change in ({"weights": "last"}, {"clip": None}, {"layer_decay": 1.0}, {"balance": "none"}, {"mixup": 0.0}):
        assert trained(Normalized, processes=1, **{**values, **change}) != alone, change


def test_training_resumes_at_every_step_with_the_same_bytes(tmp_path):
    """Batch normalization, dropout, an average, the best epoch, MixUp and all the rest, early stopping included."""
    values = {**EVERYTHING, "epochs": 5, "patience": 1, "learning_rate": 1.0, "log_every": 1, "processes": 1}
    whole = trained(Normalized, **values)
    steps = len(whole[1])
    assert steps < 5 * 3, "it ends early"
    for step in range(1, steps + 1):
        checkpoints = Checkpoints(tmp_path / str(step), every=1)
        with pytest.raises(StoppedError):
            trained(Normalized, checkpoints, stop_after(step), **values)
        checkpoints.wait()
        resumed = trained(Normalized, Checkpoints(tmp_path / str(step), every=1), **{**values, "processes": 2})
        assert resumed == whole, step


def test_an_ended_training_that_is_resumed_trains_no_step_more(tmp_path):
    values = {"weights": "validation_loss", "patience": 1, "epochs": 9, "learning_rate": 1.0, "processes": 1}
    whole = trained(Normalized, Checkpoints(tmp_path / "seed-0", every=1), **values)
    assert len({row.epoch for row in whole[1]}) < 9
    assert trained(Normalized, Checkpoints(tmp_path / "seed-0", every=1), **values) == whole


def test_the_average_is_that_of_the_weights_after_each_step_and_is_what_is_validated_and_kept():
    params = train_params(epochs=2, batch_size=10, ema=0.8, parts=1, learning_rate=0.1)
    torch.manual_seed(0)
    classifier = Classifier(Normalized(), [0.24], [0.33])
    engine = Engine(classifier, params, CPU)
    steps, expected = Steps(engine, TRAIN), {name: value.double() for name, value in state_of(classifier).items()}
    for step in range(2 * steps.per_epoch):
        if step % steps.per_epoch == 0:
            steps.begin_epoch(step // steps.per_epoch + 1)
        steps.step(step % steps.per_epoch)
        decay = min(0.8, (2 + step) / (11 + step))
        for name, value in state_of(classifier).items():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
    average = state_of(engine.validated)
    counters = {name for name, value in average.items() if not value.is_floating_point()}
    assert len(counters) == 2  # of batches, in batch normalization
    for name, value in average.items():
        if name in counters:
            assert value == 2 * steps.per_epoch
        else:
            torch.testing.assert_close(value.double(), expected[name].detach(), rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, state_of(classifier)[name])
    engine.hold_out(torch.from_numpy(VALIDATION.images), torch.from_numpy(VALIDATION.labels))
    ((loss, _),) = engine.end_epoch()
    engine.finish()
    engine.average = None
    assert engine.validate()[0][0] == pytest.approx(loss, rel=1e-6)
    assert all(torch.equal(value, average[name]) for name, value in state_of(classifier).items())


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_the_weights_of_the_best_epoch_are_those_of_a_training_that_ends_there(metric):
    values = {"schedule": "constant", "learning_rate": 2.0, "parts": 1}
    kept, rows = trained(Normalized, weights=metric, epochs=8, **values)
    found = [getattr(row, metric) for row in rows if row.validation_loss is not None]
    best = found.index(min(found) if metric == "validation_loss" else max(found)) + 1
    assert best < 8
    assert trained(Normalized, epochs=best, **values)[0] == kept
    assert trained(Normalized, epochs=8, **values)[0] != kept


def test_training_ends_after_patience_epochs_without_a_better_value():
    best = Best(Classifier(LeNet5(1, 10), [0.24], [0.33]), "validation_accuracy", patience=2)
    values = [0.5, 0.6, 0.6, 0.7, 0.6, float("nan")]
    ended = []
    for value in values:
        best.judge({"validation_accuracy": value, "validation_loss": 1.0})
        ended.append(best.exhausted)
    assert ended == [False] * 5 + [True]
    assert best.value == 0.7


def test_a_metric_that_is_never_finite_keeps_the_last_weights():
    best = Best(Classifier(LeNet5(1, 10), [0.24], [0.33]), "validation_loss", patience=1)
    best.judge({"validation_loss": float("nan")})
    assert best.since == -1
    assert not best.exhausted


def test_without_validation_images_nothing_can_be_best():
    with pytest.raises(ValueError, match=r"^train\.keep\.weights: validation_loss needs validation images, .*fraction"):
        fit(
            Classifier(LeNet5(1, 10), [0.24], [0.33]),
            TRAIN,
            digits_split(0),
            train_params(weights="validation_loss"),
            CPU,
            lambda *_: None,
        )


def test_gradients_are_scaled_down_to_the_largest_norm():
    torch.manual_seed(0)
    images, labels = torch.from_numpy(TRAIN.images[:20]), torch.from_numpy(TRAIN.labels[:20])

    def gradients(**values):
        torch.manual_seed(0)
        engine = Engine(Classifier(LeNet5(1, 10), [0.24], [0.33]), train_params(parts=2, **values), CPU)
        parts = engine.parts.of(torch.arange(20))
        batch = [(n, engine.classifier.normalize(images[part]), Targets(labels[part])) for n, part in parts]
        engine.step(batch, 20, 1e-30)
        return torch.cat([parameter.grad.flatten() for parameter in engine.parameters.values()])

    free = gradients()
    assert free.norm() > 0.1
    torch.testing.assert_close(gradients(clip=0.1), free * (0.1 / free.norm()))
    assert torch.equal(gradients(clip=100.0), free)


def test_balanced_epochs_have_all_classes_equally_often_and_no_image_twice_before_all():
    labels = torch.tensor([0] * 50 + [3] * 7 + [1] * 3).numpy()
    order = balanced(labels, np.random.default_rng(0)).numpy()
    assert np.bincount(labels[order]).tolist() == [20, 20, 0, 20]
    for label, few in ((0, 0), (3, 2), (1, 6)):
        times = np.bincount(order, minlength=60)[labels == label]
        assert set(times) <= {few, few + 1}
    assert not np.array_equal(labels[order], np.sort(labels[order]))
    assert len(balanced(labels[:59], np.random.default_rng(0))) == 59


def test_classes_of_the_same_weight_count_the_same_in_the_loss():
    engine = Engine(Classifier(LeNet5(1, 10), [0.24], [0.33]), train_params(parts=1), CPU)
    labels = torch.tensor([0] * 6 + [2] * 2)
    engine.weigh_classes(labels)
    weights = engine.class_weights[labels]
    assert weights[:6].sum() == weights[6:].sum()
    assert weights.mean() == 1
    logits = torch.randn(8, 10)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert engine._loss(logits, Targets(labels)) == pytest.approx((each[:6].mean() / 2 + each[6:].mean() / 2).item())


def test_an_average_follows_its_network_and_leaves_it_alone():
    torch.manual_seed(0)
    classifier = Classifier(Normalized(), [0.24], [0.33])
    average = Average(classifier, decay=0.5)
    before = digest(classifier)
    average.update()
    assert digest(classifier) == before
    assert digest(average.classifier) == before
    assert not any(parameter.requires_grad for parameter in average.classifier.parameters())
