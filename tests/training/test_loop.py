"""The engine: faithful to a plain loop, the same bits twice, stopped before an update that is not finite."""

import math
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from classifier.data.dataset import Split
from classifier.networks.model import Classifier, LeNet5
from classifier.training import engine
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import DivergedError, Engine
from classifier.training.loop import fit
from classifier.training.mixing import Targets
from classifier.training.steps import Steps, plan_epoch
from tests.samples import digits_split, train_params

CPU = torch.device("cpu")
EMPTY = Split(np.zeros((0, 1, 32, 32), np.uint8), np.zeros(0, np.int64))


def classifier(seed=0, mean=0.5, std=1.0):
    torch.manual_seed(seed)
    return Classifier(LeNet5(1, 10), [mean], [std])


def train(params, train=None, validation=EMPTY, model=None, checkpoints=None):
    model = model or classifier()
    rows = []
    fit(model, train or digits_split(100), validation, params, CPU, lambda seed, row: rows.append(row), checkpoints)
    return model, rows


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class PlainDataset(torch.utils.data.Dataset):
    """As in the tutorial: one image at a time, ToTensor's and Normalize's arithmetic."""

    def __init__(self, split, mean, std):
        self.split, self.mean, self.std = split, mean, std

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image = torch.from_numpy(self.split.images[index]).float() / 255
        return (image - self.mean) / self.std, int(self.split.labels[index])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_plain_tutorial_loop_finds_the_same_losses_and_weights(optimizer):
    params = train_params(optimizer=optimizer, epochs=2, batch_size=30, learning_rate=0.01, log_every=2, nesterov=False)
    split, network = digits_split(100), classifier().network
    step = {
        "sgd": torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=params.weight_decay),
        "adamw": torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=params.weight_decay),
    }[optimizer]
    losses = []
    for epoch in (1, 2):
        order, _ = plan_epoch(torch.zeros(100), 32, epoch, params.seed, params)
        running_loss, steps = 0.0, 0
        for i, (images, labels) in enumerate(
            torch.utils.data.DataLoader(
                PlainDataset(split, 0.5, 1.0), batch_sampler=[batch.tolist() for batch in order.split(30)]
            )
        ):
            step.zero_grad()
            loss = nn.CrossEntropyLoss()(network(images), labels)
            loss.backward()
            step.step()
            running_loss, steps = running_loss + loss.item(), steps + 1
            if i % 2 == 1:
                losses.append(running_loss / steps)
                running_loss, steps = 0.0, 0

    model, rows = train(params, split)
    assert [row.running_loss for row in rows] == pytest.approx(losses, rel=1e-5)
    # AdamW divides by the gradient's size, so that a rounding error of a tiny gradient becomes one of the step.
    atol = {"sgd": 1e-6, "adamw": 1e-4}[optimizer]
    torch.testing.assert_close(weights(model), weights(network), rtol=1e-4, atol=atol)


def test_same_seed_same_bits_other_seed_other_bits():
    params = train_params(epochs=2, shift=1, schedule="one_cycle")
    first, second = train(params), train(params)
    assert torch.equal(weights(first[0]), weights(second[0]))
    assert first[1] == second[1]
    assert not torch.equal(weights(train(params.model_copy(update={"seed": 1}))[0]), weights(first[0]))


def test_windows_start_anew_with_each_epoch_and_a_partial_one_is_dropped():
    _, rows = train(train_params(epochs=2, batch_size=30, log_every=3), digits_split(100))  # 4 steps an epoch
    assert [(row.step, row.epoch, row.images) for row in rows] == [(3, 1, 90), (4, 1, 100), (7, 2, 190), (8, 2, 200)]
    assert [row.running_loss is not None for row in rows] == [True, False, True, False]
    assert [row.train_loss is not None for row in rows] == [False, True, False, True]


def test_an_epoch_shorter_than_a_window_is_one_window():
    _, rows = train(train_params(epochs=2, batch_size=30, log_every=1000), digits_split(100))
    assert [(row.step, row.running_loss is not None) for row in rows] == [(4, True), (8, True)]


def test_losses_are_sums_divided_by_counts_the_ragged_batch_included():
    """At a vanishing learning rate every loss is that of the initial weights, so it can be computed directly."""
    params = train_params(epochs=1, batch_size=30, log_every=10, learning_rate=1e-30, label_smoothing=0.1)
    split = digits_split(100)
    _, (row,) = train(params, split)
    model, batches = classifier(), plan_epoch(torch.zeros(100), 32, 1, params.seed, params)[0].split(30)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    losses = [cross_entropy(model(images[b]), labels[b], label_smoothing=0.1).item() for b in batches]
    assert [len(batch) for batch in batches] == [30, 30, 30, 10]
    assert row.running_loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert row.train_loss == pytest.approx((sum(losses[:3]) * 30 + losses[3] * 10) / 100, rel=1e-6)


def test_every_image_is_seen_once_an_epoch_in_another_order():
    orders = [plan_epoch(torch.zeros(50), 32, epoch, 0, train_params(batch_size=7))[0].tolist() for epoch in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_validation_curves_stand_in_the_epochs_last_row():
    validation = digits_split(137, start=300)
    model, rows = train(train_params(epochs=2, batch_size=30, log_every=3), validation=validation)
    assert [row.validation_loss is not None for row in rows] == [False, True, False, True]
    with torch.inference_mode():
        logits = model(torch.from_numpy(validation.images))
    labels = torch.from_numpy(validation.labels)
    assert rows[-1].validation_loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert rows[-1].validation_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_validation_changes_no_weight():
    params = train_params(epochs=2)
    assert torch.equal(weights(train(params)[0]), weights(train(params, validation=digits_split(50, start=300))[0]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_training_learns(optimizer):
    rate = {"sgd": 0.05, "adamw": 0.003, "muon": 0.015}[optimizer]
    params = train_params(optimizer=optimizer, epochs=8, learning_rate=rate, schedule="one_cycle")
    _, rows = train(params, digits_split(1000), digits_split(300, start=1000), classifier(mean=0.24, std=0.33))
    assert rows[-1].validation_accuracy > 0.9


@pytest.mark.parametrize("every", [None, 1])
def test_the_host_waits_once_a_window(monkeypatch, tmp_path, every):
    """Outside close_window nothing reads a value back, so a GPU never waits within a window.

    What a checkpoint has to know of its tensors is asked in the thread that writes it.
    """
    inside, threads = [], []
    reads = {"tolist": 0, "item": 0, "__bool__": 0}
    close = Engine.close_window
    checkpoints = every and Checkpoints(tmp_path / "seed-0", every)

    def watched_close(self, *arguments):
        inside.append(True)
        result = close(self, *arguments)
        inside.pop()
        return result

    for name in reads:
        original = getattr(torch.Tensor, name)

        def watched(self, *, name=name, original=original):
            if threading.current_thread() is not threading.main_thread():
                threads.append(name)
                return original(self)
            reads[name] += 1
            assert inside, f"{name} within a window"
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, watched)
    monkeypatch.setattr(Engine, "close_window", watched_close)
    _, rows = train(train_params(epochs=2, batch_size=10, log_every=5), checkpoints=checkpoints)
    assert reads == {"tolist": len(rows), "item": 0, "__bool__": 0}
    assert threads == ["__bool__"] * (20 if every else 0), "whether a step was finite, once a checkpoint"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_stops_before_the_update_that_would_not_be_finite(monkeypatch, optimizer, where):
    params = train_params(optimizer=optimizer, epochs=3, batch_size=30, log_every=3, parts=1)  # 4 steps an epoch
    good, _ = train(params.model_copy(update={"epochs": 1}))  # the weights after 4 steps
    calls = []

    def poisoned(*arguments, **keywords):
        loss = cross_entropy(*arguments, **keywords)
        calls.append(loss)
        if len(calls) == 5:
            if where == "loss":
                return loss * math.nan
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(engine, "cross_entropy", poisoned)
    model = classifier()
    with pytest.raises(DivergedError, match=r"not finite at step 5 \(epoch 2\).*before its update.*learning_rate"):
        train(params, model=model)
    assert torch.equal(weights(model), weights(good))
    assert len(calls) == 7  # noticed at the end of the window that step 5 lies in


def test_an_infinite_loss_with_finite_gradients_stops_it_too():
    """Logits of 3e38 and -3e38 are finite, and so is the softmax's gradient; their difference is not."""
    model = classifier()
    with torch.no_grad():
        model.network.fc3.weight.zero_()
        model.network.fc3.bias.copy_(torch.tensor([3e38] + [-3e38] * 9))
    before = weights(model).clone()
    with pytest.raises(DivergedError, match="not finite at step 1 "):
        train(train_params(epochs=1, batch_size=30), model=model)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert torch.equal(weights(model), before)


def test_a_learning_rate_far_too_high_is_named():
    with pytest.raises(DivergedError, match=r"train.learning_rate 100 is too high, try 10"):
        train(train_params(epochs=20, learning_rate=100.0))


def test_where_the_optimizer_cannot_skip_by_itself_the_host_does(monkeypatch):
    """As on Apple's MPS, whose fused optimizers refuse `found_inf`."""
    params = train_params(epochs=2, batch_size=30, log_every=3)
    expected, rows = train(params)
    start = Engine.__init__

    def init(self, *arguments, **keywords):
        start(self, *arguments, **keywords)
        self.skips_by_itself = False
        self.optimizer.found_inf = None

    monkeypatch.setattr(Engine, "__init__", init)
    model, same = train(params)
    assert torch.equal(weights(model), weights(expected))
    assert same == rows
    with pytest.raises(DivergedError):
        train(train_params(epochs=20, learning_rate=100.0), model=(model := classifier()))
    assert weights(model).isfinite().all()


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.0},
        {"momentum": 0.9, "nesterov": True, "schedule": "one_cycle", "shift": 1},
        {"optimizer": "adamw", "schedule": "cosine"},
        {"optimizer": "muon"},
        {"per": "image", "rotation": 5.0, "policy": "trivialaugment", "flip": 0.5, "crop": 0.5},
        {"mixup": 0.2, "cutmix": 1.0, "erase": 0.5},
    ],
)
def test_an_engine_continues_from_its_state_bit_for_bit(values):
    """Stopped after every step in turn, the middle of a window included, and continued by a new engine."""
    params = train_params(epochs=2, batch_size=30, **values)
    split, whole = digits_split(100), Engine(classifier(), params, CPU)
    states = [whole.state()]
    for _ in going_on(whole, split, 0):
        states.append(whole.state())
    for done, state in enumerate(states):
        assert all(value.is_contiguous() for value in state.values())
        continued = Engine(classifier(seed=1), params, CPU)
        next(going_on(continued, split, 0))  # so that there is something to replace
        continued.load(state)
        assert sum(1 for _ in going_on(continued, split, done)) == 8 - done
        equal = {name: torch.equal(value, states[-1][name]) for name, value in continued.state().items()}
        assert equal == dict.fromkeys(states[-1], True)


def going_on(engine, split, done):
    """The steps of two epochs from number `done` on, one after the other."""
    steps = Steps(engine, split)
    for step in range(done, 2 * steps.per_epoch):
        if step == done or step % steps.per_epoch == 0:
            steps.begin_epoch(step // steps.per_epoch + 1)
        steps.step(step % steps.per_epoch)
        yield step


def test_a_state_is_a_copy_under_names_that_say_what_it_is():
    engine = Engine(classifier(), train_params(), CPU)
    state = engine.state()
    names = {"weights/conv1.weight", "optimizer/conv1.weight/momentum_buffer", "sums/loss", "sums/found_inf"}
    assert names < set(state)
    state["weights/fc3.bias"].zero_()
    assert engine.state()["weights/fc3.bias"].any()


def test_the_state_of_another_training_is_refused():
    state = Engine(classifier(), train_params(optimizer="adamw"), CPU).state()
    with pytest.raises(ValueError, match=r"is of another training, as .*momentum_buffer"):
        Engine(classifier(), train_params(), CPU).load(state)


def test_forged_names_are_told_in_one_line_of_a_readable_length():
    engine = Engine(classifier(), train_params(), CPU)
    with pytest.raises(ValueError, match="is of another training") as caught:
        engine.load(engine.state() | {"sums/a\nb" + "x" * 5000: torch.zeros(1)})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.gpu
def test_cuda_learns_as_the_cpu_does_and_gives_the_same_bits_twice(cuda):
    params, runs = train_params(epochs=2, shift=1), []
    for device in (cuda, cuda, CPU):
        model = classifier()
        fit(model, digits_split(200), EMPTY, params, device, lambda seed, row: None)
        runs.append(weights(model.cpu()))
    assert torch.equal(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2], rtol=1e-3, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    full, _ = train(train_params())
    half, rows = train(train_params(precision="bfloat16"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert not torch.equal(weights(full), weights(half))
    torch.testing.assert_close(weights(full), weights(half), rtol=0, atol=0.05)
    assert math.isfinite(rows[-1].running_loss)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_convolutions_run_over_the_last_dimension_on_a_cpu_and_in_less_than_float32_on_a_gpu(device, precision):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    engine = Engine(Classifier(network, [0.5], [1.0]).to(device), train_params(precision=precision, parts=1), device)
    seen = []
    network.register_forward_pre_hook(lambda module, arguments: seen.extend([*arguments, module[0].weight]))
    labels = torch.arange(4, device=device)
    engine.step([(0, torch.rand(4, 3, 8, 8, device=device), Targets(labels))], 4, 0.1)
    last = device == CPU or precision == "bfloat16"
    assert [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen] == [last, last]
