"""Replayed steps: on a CPU a plain call stands for the graph, and gives the bits of the engine's own steps."""

import re

import numpy as np
import pytest
import torch

from classifier.data.dataset import Split
from classifier.device import set_precision
from classifier.networks.model import Classifier, LeNet5
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import DivergedError, Engine
from classifier.training.graph import GraphedSteps, StreamedGraph, cuda_graph
from classifier.training.loop import fit as plain_fit
from classifier.training.loop import run_epochs
from tests.samples import digits_split, train_params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TRAIN, VALIDATION = digits_split(100), digits_split(50, start=300)
EMPTY = Split(np.zeros((0, 1, 32, 32), np.uint8), np.zeros(0, np.int64))


def replay_on_cpu(step):
    """As `cuda_graph` does it: steps to warm up, one that is captured, and then the same call again and again."""
    for _ in range(4):
        step()
    return step


CAPTURES = {"cpu": replay_on_cpu, "cuda": cuda_graph}


def new_classifier(seed=0, channels=1):
    torch.manual_seed(seed)
    return Classifier(LeNet5(channels, 10), [0.24] * channels, [0.33] * channels)


def weights(classifier):
    return torch.cat([parameter.detach().flatten() for parameter in classifier.cpu().parameters()])


def eager(params, checkpoints=None):
    classifier, rows = new_classifier(), []
    plain_fit(classifier, TRAIN, VALIDATION, params, CPU, lambda seed, row: rows.append(row), checkpoints)
    return weights(classifier), rows


def graphed(params, checkpoints=None, capture=None, device=CPU, data=(TRAIN, VALIDATION), report=None):
    train, validation = data
    classifier, rows = new_classifier(channels=train.images.shape[1]).to(device), []
    steps = GraphedSteps(Engine(classifier, params, device), train, capture or CAPTURES[device.type])
    run_epochs(steps, validation, report or (lambda seed, row: rows.append(row)), checkpoints)
    return weights(classifier), rows


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.parametrize(
    "values",
    [
        {"momentum": 0.0},
        {"nesterov": True, "shift": 2, "schedule": "one_cycle"},
        {"rotation": 10.0, "scale": 0.1, "shift": 1, "label_smoothing": 0.1},
        {"per": "image", "shift": 2, "flip": 0.5, "mixup": 0.2, "cutmix": 1.0, "erase": 0.5},
        {"per": "image", "rotation": 10.0, "crop": 0.5, "flip": 0.5},
        {"optimizer": "adamw", "schedule": "cosine", "batch_size": 25},  # no smaller batch at the end
        {"optimizer": "muon", "schedule": "one_cycle"},
        {"batch_size": 200},  # nothing else
        {"precision": "bfloat16"},
    ],
)
def test_replayed_steps_give_the_eager_bits(values):
    params = train_params(**{"epochs": 2, "batch_size": 30, "log_every": 2} | values)
    assert_equal(graphed(params), eager(params))


def test_streamed_images_are_copied_to_where_the_replay_reads_them():
    params = train_params(epochs=2, batch_size=30, log_every=2, parts=1, shift=1, per="image")
    classifier, rows = new_classifier(), []
    steps = StreamedGraph(Engine(classifier, params, CPU), TRAIN, replay_on_cpu)
    run_epochs(steps, VALIDATION, lambda seed, row: rows.append(row), None)
    assert_equal((weights(classifier), rows), eager(params))


def test_full_batches_are_replayed_and_the_smaller_one_is_not():
    calls = {"captured": 0, "replayed": 0}

    def capture(step):
        calls["captured"] += 1

        def replay():
            calls["replayed"] += 1
            step()

        return replay

    graphed(train_params(epochs=2, batch_size=30), capture=capture)
    assert calls == {"captured": 1, "replayed": 6}
    graphed(train_params(batch_size=200), capture=capture)
    assert calls == {"captured": 1, "replayed": 6}


@pytest.mark.parametrize("steps_before", [0, 3])
def test_without_a_graph_training_goes_on_and_one_line_says_why(capsys, steps_before):
    def failing(step):
        for _ in range(steps_before):
            step()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with TORCH_USE_...")

    params = train_params(epochs=2, batch_size=30, shift=1)
    assert_equal(graphed(params, capture=failing), eager(params))
    said = "CUDA error: operation not permitted when stream is capturing"
    assert capsys.readouterr().err == f"no CUDA graph, kernels are launched one by one: {said}\n"


def test_where_there_is_no_cuda_the_capture_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError):
        cuda_graph(lambda: None)


def test_a_step_that_is_not_finite_leaves_the_weights_before_it(device):
    classifier = new_classifier().to(device)
    engine = Engine(classifier, train_params(batch_size=30), device)
    steps = GraphedSteps(engine, TRAIN, CAPTURES[device.type])
    steps.begin_epoch(1)
    steps.step(0)
    with torch.no_grad():
        classifier.network.fc3.bias[0] = float("inf")
    before = [parameter.detach().clone() for parameter in classifier.parameters()]  # they stay where the graph looks
    for batch in range(1, steps.per_epoch):  # the smaller batch included
        steps.step(batch)
    assert all(torch.equal(one, other) for one, other in zip(classifier.parameters(), before, strict=True))
    with pytest.raises(DivergedError, match=r"not finite at step 2 \(epoch 1\)"):
        engine.close_window(1, steps.per_epoch)


def test_divergence_is_found_at_the_same_step_before_its_update():
    params = train_params(epochs=20, batch_size=30, learning_rate=100.0)
    classifiers, messages = [new_classifier(), new_classifier()], []
    with pytest.raises(DivergedError) as error:
        plain_fit(classifiers[0], TRAIN, EMPTY, params, CPU, lambda seed, row: None)
    messages.append(str(error.value))
    steps = GraphedSteps(Engine(classifiers[1], params, CPU), TRAIN, replay_on_cpu)
    with pytest.raises(DivergedError) as error:
        run_epochs(steps, EMPTY, lambda seed, row: None, None)
    messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert re.match(r"loss or gradients are not finite at step \d+ ", messages[0])
    assert torch.equal(weights(classifiers[0]), weights(classifiers[1]))
    assert weights(classifiers[1]).isfinite().all()


class StoppedError(Exception):
    """What kills a training in a test."""


@pytest.mark.parametrize("stop", [1, 3, 4, 5])  # rows; the middle of an epoch included
def test_resumed_from_a_checkpoint_it_gives_the_same_bits_and_rows(tmp_path, stop, device):
    params = train_params(epochs=2, batch_size=30, log_every=2, shift=2, schedule="one_cycle")
    rows = []

    def report(seed, row):
        rows.append(row)
        if len(rows) == stop:
            raise StoppedError

    killed = Checkpoints(tmp_path / "seed-0", every=1)
    if stop < 5:
        with pytest.raises(StoppedError):
            graphed(params, killed, device=device, report=report)
        killed.wait()
    resumed = graphed(params, Checkpoints(tmp_path / "seed-0", every=1), device=device)
    assert_equal(resumed, eager(params) if device == CPU else graphed(params, device=device))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "values",
    [
        {"shift": 2},
        {"optimizer": "adamw"},
        {"optimizer": "muon"},
        {"rotation": 10.0},
        {"rotation": 10.0, "scale": 0.1, "shift": 1},
        {"precision": "tf32"},
        {"precision": "bfloat16"},
    ],
)
def test_the_graph_gives_the_bits_of_its_kernels_one_by_one_and_the_same_ones_twice(device, values, channels, capsys):
    params = train_params(epochs=3, batch_size=30, log_every=2, **values)
    if params.precision == "tf32" and device == CPU:
        pytest.skip("a CPU has no TF32")
    set_precision(params.precision, device)
    data = [Split(split.images.repeat(channels, axis=1), split.labels) for split in (TRAIN, VALIDATION)]
    replayed = graphed(params, device=device, data=data)
    assert_equal(replayed, graphed(params, device=device, data=data))
    assert_equal(replayed, graphed(params, capture=lambda step: step, device=device, data=data))
    assert not capsys.readouterr().err


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_within_a_window(cuda):
    steps = GraphedSteps(Engine(new_classifier().to(cuda), train_params(shift=1, batch_size=30), cuda), TRAIN)
    steps.begin_epoch(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in range(steps.per_epoch):  # the smaller batch included
            steps.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps.engine.close_window(1, steps.per_epoch)[0] > 0


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_is_launched_kernel_by_kernel(cuda, capsys):
    def capture(step):
        return cuda_graph(lambda: (step(), torch.cuda.synchronize()))

    params = train_params(epochs=2, batch_size=30, shift=1)
    expected = graphed(params, capture=cuda_graph, device=cuda)
    assert_equal(graphed(params, capture=capture, device=cuda), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no CUDA graph, kernels are launched one by one: ")
