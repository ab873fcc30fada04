"""A batch in parts: the sum over the batch, with bits that depend on the number of parts alone."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from classifier.data.dataset import Split
from classifier.device import environment
from classifier.errors import UserError
from classifier.networks.inference import predict
from classifier.networks.model import Classifier, LeNet5
from classifier.training import engine, parts
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import DivergedError, Engine
from classifier.training.loop import fit
from classifier.training.mixing import Targets
from classifier.training.parts import computation_of, tree_sum
from classifier.workers import Crew
from tests.processes import forks
from tests.samples import StoppedError, digits_split, stop_after, train_params

CPU = torch.device("cpu")
TRAIN, VALIDATION = digits_split(61), digits_split(45, start=61)  # a last batch of a single image


def trained(params, checkpoints=None, report=None):
    torch.manual_seed(params.seed)
    classifier, rows = Classifier(LeNet5(1, 10), [0.24], [0.33]), []
    fit(classifier, TRAIN, VALIDATION, params, CPU, report or (lambda seed, row: rows.append(row)), checkpoints)
    return torch.cat([value.detach().flatten() for value in classifier.parameters()]), rows


def equal(found, expected):
    return torch.equal(found[0], expected[0]) and found[1] == expected[1]


@pytest.fixture(autouse=True)
def small_validation_batches(monkeypatch):
    """So that processes share them."""
    monkeypatch.setattr(engine, "VALIDATION_BATCH", 10)


def test_sums_follow_one_tree():
    """In float32 these four make 0 in pairs, and 1 from left to right."""
    values = [torch.tensor(value) for value in (1e8, 1.0, -1e8, 1.0)]
    assert tree_sum(values) == 0
    assert tree_sum([*values, torch.tensor(3.0)]) == 3
    assert tree_sum(values[:1]) == 1e8


@pytest.mark.parametrize(
    "values",
    [
        {"parts": 2, "shift": 2, "schedule": "one_cycle", "label_smoothing": 0.1, "nesterov": True},
        {"parts": 3, "optimizer": "adamw", "rotation": 10.0, "scale": 0.1},
        {"parts": 4, "optimizer": "muon", "shift": 1},
        {"parts": 3, "per": "image", "rotation": 10.0, "crop": 0.5, "policy": "trivialaugment"},
        {"parts": 3, "shift": 2, "flip": 0.5, "erase": 0.5, "mixup": 0.2, "cutmix": 1.0},
    ],
)
def test_the_number_of_processes_changes_no_bit(values):
    params = train_params(epochs=3, batch_size=20, log_every=2, **values)
    alone = trained(params.model_copy(update={"processes": 1}))
    for processes in (2, 3, 4):
        assert equal(trained(params.model_copy(update={"processes": processes})), alone), processes


def test_the_number_of_threads_changes_no_bit():
    params = train_params(epochs=2, batch_size=20, parts=2)
    one = trained(params)
    torch.set_num_threads(2)
    try:
        assert equal(trained(params), one)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_the_sum_of_the_parts_is_that_of_the_batch(count):
    """Parts of different sizes, and more parts than images; float32's rounding apart."""
    images, labels = torch.from_numpy(TRAIN.images[:20]), torch.from_numpy(TRAIN.labels[:20])
    torch.manual_seed(0)
    classifier = Classifier(LeNet5(1, 10), [0.24], [0.33])
    cross_entropy(classifier(images), labels, label_smoothing=0.1).backward()
    expected = [parameter.grad.clone() for parameter in classifier.network.parameters()]
    one = Engine(classifier, train_params(parts=count, label_smoothing=0.1, learning_rate=1e-30), CPU)
    parts = one.parts.of(torch.arange(20))
    one.step([(n, classifier.normalize(images[part]), Targets(labels[part])) for n, part in parts], 20, 1e-30)
    for parameter, gradient in zip(classifier.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        loss = cross_entropy(classifier(images), labels, label_smoothing=0.1).item()
    assert one.close_window(1, 1) == [pytest.approx(loss, rel=1e-5)]


@pytest.mark.parametrize("processes", [1, 3])
def test_training_resumes_with_another_number_of_processes(tmp_path, processes):
    params = train_params(epochs=3, batch_size=20, log_every=2, parts=3, checkpoint_every=1, shift=1)
    whole = trained(params.model_copy(update={"processes": 2}))
    checkpoints = Checkpoints(tmp_path / "seed-0", every=1)
    with pytest.raises(StoppedError):
        trained(params.model_copy(update={"processes": 2}), checkpoints, stop_after(4))
    checkpoints.wait()
    other = params.model_copy(update={"processes": processes})
    assert equal(trained(other, Checkpoints(tmp_path / "seed-0", every=1)), whole)


@pytest.mark.parametrize("poisoned", [0, 1])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_part_that_is_not_finite_stops_all_before_the_update(monkeypatch, poisoned, processes):
    """Whichever process computes it."""
    good, _ = trained(train_params(epochs=1, batch_size=20, parts=2, processes=1))
    backward, steps = parts.Parts.backward, dict.fromkeys((0, 1), 0)
    fifth = 5 - poisoned  # the fourth batch, of a single image, has one part

    def poison(self, number, loss, share):
        steps[number] += 1
        backward(self, number, loss * math.nan if number == poisoned and steps[number] == fifth else loss, share)

    monkeypatch.setattr(parts.Parts, "backward", poison)
    torch.manual_seed(0)
    classifier = Classifier(LeNet5(1, 10), [0.24], [0.33])
    params = train_params(epochs=3, batch_size=20, log_every=2, parts=2, processes=processes)
    with pytest.raises(DivergedError, match=r"not finite at step 5 \(epoch 2\), stopped before its update"):
        fit(classifier, TRAIN, VALIDATION, params, CPU, lambda seed, row: None)
    assert torch.equal(torch.cat([value.detach().flatten() for value in classifier.parameters()]), good)
    assert not forks()


def test_a_process_that_is_killed_ends_training_and_its_checkpoint_goes_on(tmp_path):
    params = train_params(epochs=3, batch_size=20, parts=2, processes=2, checkpoint_every=1)
    whole = trained(params)

    def kill(seed, row):
        if row.step == 4:
            (child,) = forks()
            child.kill()

    with pytest.raises(UserError, match="exited without reporting"):
        trained(params, Checkpoints(tmp_path / "seed-0", every=1), kill)
    assert not forks()
    assert list((tmp_path / "seed-0").iterdir())
    assert equal(trained(params, Checkpoints(tmp_path / "seed-0", every=1)), whole)


def test_validation_is_shared():
    """A process of two computes every second batch."""
    torch.manual_seed(0)
    classifier, images = Classifier(LeNet5(1, 10), [0.24], [0.33]), torch.from_numpy(digits_split(25).images)
    crew = Crew(2)
    logits = crew.share(25, 10)
    crew.meet = lambda written: None  # alone: the other's are left out
    predict(classifier, images, 10, crew, logits)
    assert logits.any(dim=1).tolist() == [True] * 10 + [False] * 10 + [True] * 5


def test_an_empty_validation_split_needs_no_process():
    params = train_params(batch_size=20, parts=2, processes=2)
    rows = []
    empty = Split(np.zeros((0, 1, 32, 32), np.uint8), np.zeros(0, np.int64))
    model = Classifier(LeNet5(1, 10), [0.24], [0.33])
    fit(model, TRAIN, empty, params, CPU, lambda seed, row: rows.append(row))
    assert rows[-1].validation_loss is None


def test_a_computation_says_what_is_in_force(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = computation_of(train_params(parts="auto", processes="auto"), CPU)
    assert str(found) == "portable arithmetic, 2 parts in 2 processes of 1 thread"
    assert found.recorded() == {
        "arithmetic": "portable",
        "instructions": "AVX2, compatible MKL",
        "parts": "2",
        "processes": "2",
    }
    assert str(computation_of(train_params(parts=1), CPU)) == "portable arithmetic, 1 part in 1 process of 1 thread"
    native = computation_of(train_params(arithmetic="native", parts=1), CPU)
    assert str(native) == "native arithmetic, 1 part in 1 process of 2 threads"
    gpu = computation_of(train_params(), torch.device("cuda"))
    assert (gpu.parts, gpu.processes, gpu.recorded()) == (
        1,
        1,
        {"arithmetic": "native", "parts": "1", "processes": "1"},
    )


def test_what_decides_the_bits_is_not_where_they_are_computed(monkeypatch):
    """Portable: another machine with the same libraries. Native: this processor, and threads inside of operations."""

    def decisive(cores, cpu="some processor", **values):
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        machine = environment(CPU) | {"cpu": cpu}
        return computation_of(train_params(**values), CPU).decisive(machine)

    assert decisive(1) == decisive(4, "another") == decisive(2, processes=1)
    assert decisive(1) != decisive(1, parts=3)
    assert decisive(1, arithmetic="native") == decisive(4, arithmetic="native", processes=3) != decisive(1)
    assert decisive(1, arithmetic="native") != decisive(1, "another", arithmetic="native")
    assert decisive(1, arithmetic="native", parts=1) != decisive(2, arithmetic="native", parts=1)


def test_processes_take_the_cores_that_there_are(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    wanted = [(2, "auto"), (4, "auto"), (4, 1), (4, 8), ("auto", "auto")]
    found = [computation_of(train_params(parts=count, processes=each), CPU).processes for count, each in wanted]
    assert found == [2, 3, 1, 4, 2]
