"""`train.compile`: which batches take generated kernels, and on a GPU the same bits twice, resumed and streamed."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from classifier.data.dataset import Split
from classifier.errors import UserError
from classifier.networks.model import Classifier
from classifier.training.checkpoint import Checkpoints
from classifier.training.compilation import Compiled
from classifier.training.engine import Engine
from classifier.training.graph import GraphedSteps, StreamedGraph
from classifier.training.loop import fit, make_steps, run_epochs
from tests.samples import train_params

CPU = torch.device("cpu")


@pytest.fixture
def generated(monkeypatch):
    """The sizes of the batches that generated kernels get."""
    sizes = []

    def compiled(network, dynamic):
        assert dynamic is False

        def forward(images):
            sizes.append(len(images))
            return network(images)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    return sizes


def test_only_full_batches_are_compiled_and_one_line_says_how_long_it_took(generated, capsys):
    network = Compiled(nn.Flatten(), train_params(batch_size=7), 2)
    for size in (3, 4, 2, 1, 4):
        assert network(torch.zeros(size, 1, 2, 2)).shape == (size, 4)
        network.tell()
    assert generated == [3, 4, 4]
    assert capsys.readouterr().err == "torch.compile took 0 s\n"


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def compiled(network, dynamic):
        def forward(images):
            raise TorchDynamoException("Failed to find\nC compiler")

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    network = Compiled(nn.Flatten(), train_params(batch_size=2), 1)
    with pytest.raises(
        UserError, match=r"^train\.compile: torch\.compile failed \(Failed to find C compiler\): set it"
    ):
        network(torch.zeros(2, 1, 2, 2))


def test_a_cpu_does_not_compile(generated):
    engine = Engine(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [0.5], [0.5]), train_params(), CPU)
    assert not engine.compiles
    compiling = Engine(engine.classifier, train_params(compile=True), CPU)
    compiling.compile()
    assert not compiling.compiles
    assert isinstance(compiling.forward, nn.Sequential)
    assert generated == []


def photos(count):
    random = np.random.default_rng(0)
    return Split(random.integers(0, 256, (count, 3, 32, 32), np.uint8), random.integers(0, 10, count))


PHOTOS, NONE = photos(100), Split(np.zeros((0, 3, 32, 32), np.uint8), np.zeros(0, np.int64))


def trained(cuda, data="resident", checkpoints=None, report=lambda seed, row: None, **values):
    torch.manual_seed(0)
    classifier = Classifier(models.get_model("mobilenet_v2", num_classes=10), [0.5] * 3, [0.5] * 3)
    asked = {"batch_size": 32, "epochs": 2, "precision": "bfloat16", "device": "cuda", "data": data, "compile": True}
    fit(classifier, PHOTOS, NONE, train_params(**asked | values), cuda, report, checkpoints)
    return torch.cat([value.detach().double().flatten().cpu() for value in classifier.network.state_dict().values()])


@pytest.mark.gpu
def test_a_compiled_training_gives_the_same_bits_twice_streamed_and_resumed(cuda, tmp_path, capsys):
    expected = trained(cuda)
    assert torch.equal(trained(cuda), expected)
    assert torch.equal(trained(cuda, "streamed"), expected)
    assert "no CUDA graph" not in capsys.readouterr().err

    def stop(seed, row):
        if row.step == 5:
            raise KeyboardInterrupt

    folder, every = tmp_path / "work", 1
    with pytest.raises(KeyboardInterrupt):
        trained(cuda, checkpoints=Checkpoints(folder, every), report=stop, log_every=1)
    resumed = trained(cuda, checkpoints=Checkpoints(folder, every), log_every=1)
    assert torch.equal(resumed, trained(cuda, log_every=1))


@pytest.mark.gpu
def test_compiled_kernels_train_as_the_networks_own(cuda):
    changes = []
    for compiled in (True, False):
        torch.manual_seed(0)
        network = models.get_model("resnet18", num_classes=10)
        before = torch.cat([value.detach().flatten() for value in network.parameters()])
        asked = {"batch_size": 25, "precision": "float32", "device": "cuda", "compile": compiled}
        classifier = Classifier(network, [0.5] * 3, [0.5] * 3)
        fit(classifier, PHOTOS, NONE, train_params(**asked), cuda, lambda seed, row: None)
        changes.append(torch.cat([value.detach().cpu().flatten() for value in network.parameters()]) - before)
    one, other = changes
    assert torch.linalg.vector_norm(one - other) < 0.1 * torch.linalg.vector_norm(other)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_both_places_of_the_images_are_replayed(cuda, compiled, capsys):
    for data, kind in (("resident", GraphedSteps), ("streamed", StreamedGraph)):
        classifier = Classifier(models.get_model("resnet18", num_classes=10), [0.5] * 3, [0.5] * 3).to(cuda)
        params = train_params(batch_size=32, device="cuda", data=data, compile=compiled)
        steps = make_steps(Engine(classifier, params, cuda), PHOTOS, data == "resident")
        assert type(steps) is kind
        assert "no CUDA graph" not in capsys.readouterr().err
        run_epochs(steps, NONE, lambda seed, row: None, None)
