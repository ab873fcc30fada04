"""Batch normalization, dropout, buffers and unused parameters: equal bits for any number of processes, and resumed."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torchvision.ops import StochasticDepth

from classifier.networks.model import Classifier
from classifier.training.buffers import Buffers
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from classifier.training.loop import fit
from classifier.training.mixing import Targets
from tests.samples import ROOT, StoppedError, digits_split, stop_after, train_params

CPU = torch.device("cpu")
TRAIN, VALIDATION = digits_split(41), digits_split(20, start=61)  # a last batch of a single image


class Normalized(nn.Module):
    """Depthwise convolution, batch normalization, dropout and stochastic depth."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.skip = StochasticDepth(0.5, "row")
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.skip(self.block(x)))


class Attentive(nn.Module):
    """Attention with a mask that is not finite, GELU, layer normalization, and dropout as a function."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 8, stride=8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.1)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)
        mask = torch.full((16, 16), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = x + self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]
        x = dropout(nn.functional.gelu(self.norm(x)), 0.1, self.training)
        return self.head(x.mean(1))


class Counting(nn.Module):
    """Buffers of many types, one that is replaced, one that both share; parameters that are frozen or never used."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1024, 16), nn.Linear(16, 10)
        self.unused = nn.Linear(3, 3)
        self.body.bias.requires_grad_(False)
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(5, dtype=torch.bool))
        self.register_buffer("total", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.register_buffer("replaced", torch.zeros(16))
        self.register_buffer("bytes", torch.zeros(3, dtype=torch.uint8))
        self.head.register_buffer("shared", self.replaced)

    def forward(self, x):
        x = self.body(x.flatten(1))
        if self.training:
            self.images += 2**40 + len(x)
            self.seen[self.images % 5] = True
            self.total += x.detach().sum().double()
            self.bytes += 100
            self.replaced = 0.9 * self.replaced + 0.1 * x.detach().mean(0)
        return self.head(x - self.replaced)


NETWORKS = (Normalized, Attentive, Counting)


def state_of(classifier):
    network = classifier.network
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def digest(classifier):
    whole = hashlib.sha256()
    for name, tensor in state_of(classifier).items():
        whole.update(name.encode() + bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist()))
    return whole.hexdigest()


def trained(network, checkpoints=None, report=None, **values):
    params = train_params(**({"epochs": 3, "batch_size": 20, "log_every": 2, "parts": 3} | values))
    torch.manual_seed(params.seed)
    classifier, rows = Classifier(network(), [0.24], [0.33]), []
    report = report or (lambda seed, row: rows.append(row))
    fit(classifier, TRAIN, VALIDATION, params, CPU, report, checkpoints)
    return digest(classifier), rows


@pytest.mark.parametrize("network", NETWORKS)
def test_the_number_of_processes_changes_no_bit(network):
    alone = trained(network, processes=1)
    assert trained(network, processes=2) == alone
    assert trained(network, processes=3) == alone
    assert trained(network, processes=1, parts=2) != alone
    assert trained(network, processes=1, seed=1) != alone


PROGRAM = """
import sys
from classifier.arithmetic import use
use("portable")
from classifier.project.processes import rank
from tests.training.test_buffers import NETWORKS, trained
for network in NETWORKS:
    found = trained(network, epochs=17, processes=int(sys.argv[1]), arithmetic="portable")[0]
    if rank() == 0:
        print(found)
"""


@pytest.mark.slow
def test_fifty_steps_have_one_hash_for_all_numbers_of_processes_and_threads(tmp_path):
    """Also for processes that torchrun starts."""
    program, found = tmp_path / "program.py", set()
    program.write_text(PROGRAM)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for processes, threads, way in ((1, 1, []), (2, 2, []), (3, 1, []), (1, 1, torchrun)):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *way, str(program), str(processes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert len(set(found.pop().split())) == len(NETWORKS)


def stopped_and_resumed(step, network, folder, **values):
    """What `trained` returns of a training that was stopped after `step` and resumed from its checkpoint."""
    checkpoints = Checkpoints(folder, every=1)
    with pytest.raises(StoppedError):
        trained(network, checkpoints, stop_after(step), **values)
    checkpoints.wait()
    return trained(network, Checkpoints(folder, every=1), **values)


@pytest.mark.parametrize("network", NETWORKS)
def test_training_resumes_at_every_step_with_the_same_bytes(network, tmp_path):
    values = {"epochs": 2, "log_every": 1, "checkpoint_every": 1, "processes": 1}
    weights, rows = trained(network, **values)
    for step in range(1, 6):
        resumed = stopped_and_resumed(step, network, tmp_path / str(step), **values)
        assert resumed[0] == weights, step
        assert [row.running_loss for row in resumed[1]] == [row.running_loss for row in rows]


def test_with_one_part_the_buffers_are_those_of_the_bare_network():
    torch.manual_seed(0)
    network, bare = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1024, 10)), nn.BatchNorm2d(1)
    engine = Engine(Classifier(network, [0.24], [0.33]), train_params(parts=1), CPU)
    images, labels = torch.from_numpy(TRAIN.images[:20]), torch.from_numpy(TRAIN.labels[:20])
    engine.step([(0, engine.classifier.normalize(images), Targets(labels))], 20, 0.1)
    bare(engine.classifier.normalize(images))
    assert torch.equal(network[0].running_var, bare.running_var)
    assert network[0].num_batches_tracked == 1


def test_running_statistics_are_the_weighted_means_of_the_parts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=0.25), nn.Flatten(), nn.Linear(1024, 10))
    engine = Engine(Classifier(network, [0.24], [0.33]), train_params(parts=3), CPU)
    images, labels = torch.from_numpy(TRAIN.images[:20]), torch.from_numpy(TRAIN.labels[:20])
    images = engine.classifier.normalize(images)
    parts = [(number, images[part], Targets(labels[part])) for number, part in engine.parts.of(torch.arange(20))]
    assert [len(part) for _, part, _ in parts] == [7, 7, 6]
    for step in (1, 2):
        before = network[0].running_mean.clone(), network[0].running_var.clone()
        engine.step(parts, 20, 0.1)
        mean = sum(len(part) / 20 * part.mean() for _, part, _ in parts)
        variance = sum(len(part) / 20 * part.var() for _, part, _ in parts)
        torch.testing.assert_close(network[0].running_mean, 0.75 * before[0] + 0.25 * mean)
        torch.testing.assert_close(network[0].running_var, 0.75 * before[1] + 0.25 * variance)
        assert network[0].num_batches_tracked == step


def test_buffers_that_nothing_changes_keep_their_bits():
    """Though 1/3 is no binary fraction, and infinity minus itself is no number."""
    network = Counting()
    network.register_buffer("constant", torch.tensor([0.1, 1e30, -3.3]))
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    before = {name: value.clone() for name, value in network.named_buffers()}
    buffers = Buffers(network)
    buffers.begin()
    changes = buffers.changes(1 / 3)
    buffers.end([3 * change for change in changes], buffers.taken)
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name


def test_dropout_of_a_part_follows_from_seed_epoch_step_and_part():
    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drawn = nn.Linear(1024, 10), []

        def forward(self, x):
            self.drawn.append(int(torch.randint(2**60, ())))
            return self.linear(x.flatten(1))

    def drawn(seed, epoch, batch):
        torch.manual_seed(0)
        network = Drawn()
        engine = Engine(Classifier(network, [0.24], [0.33]), train_params(parts=2, seed=seed), CPU)
        engine.begin_step(epoch, batch)
        images, labels = torch.from_numpy(TRAIN.images[:4]).float(), torch.from_numpy(TRAIN.labels[:4])
        engine.step([(0, images[:2], Targets(labels[:2])), (1, images[2:], Targets(labels[2:]))], 4, 0.1)
        return network.drawn

    places = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1), (11, 1, 0), (1, 11, 0)]
    found = [drawn(*place) for place in places]
    assert found[0] == drawn(0, 1, 0)
    assert len({number for pair in found for number in pair}) == 2 * len(places)


def test_parameters_that_are_frozen_or_never_used_stay_and_others_learn():
    torch.manual_seed(0)
    network = Counting()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    fit(
        Classifier(network, [0.24], [0.33]),
        TRAIN,
        VALIDATION,
        train_params(epochs=1, parts=2, weight_decay=0.0),
        CPU,
        lambda *_: None,
    )
    unchanged = {name for name, value in network.named_parameters() if torch.equal(value, before[name])}
    assert unchanged == {"body.bias", "unused.weight", "unused.bias"}
