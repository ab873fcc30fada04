"""Frozen layers: weights and running statistics stay, the last layer learns, and training resumes in either phase."""

import pytest
import torch
from torch import nn

from classifier.networks.model import Classifier, head_of
from classifier.training.loop import fit
from tests.samples import train_params
from tests.training.test_buffers import CPU, TRAIN, VALIDATION, state_of, stopped_and_resumed, trained


def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10)
    )


def changed(**values):
    """The names of what training changes, and what the running loss was."""
    torch.manual_seed(0)
    classifier, rows = Classifier(net(), [0.24], [0.33]), []
    before = {name: value.detach().clone() for name, value in state_of(classifier).items()}
    params = train_params(**({"batch_size": 20, "parts": 2, "log_every": 1} | values))
    fit(classifier, TRAIN, VALIDATION, params, CPU, lambda seed, row: rows.append(row))
    return {name for name, value in state_of(classifier).items() if not torch.equal(value, before[name])}, classifier


HEAD = {"5.weight", "5.bias"}
BODY = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("parts", [1, 2])
def test_frozen_layers_keep_weights_and_statistics(optimizer, parts):
    assert changed(freeze="always", epochs=2, optimizer=optimizer, parts=parts)[0] == HEAD
    assert changed(freeze=2, epochs=2, optimizer=optimizer, parts=parts)[0] == HEAD
    assert changed(freeze=1, epochs=2, optimizer=optimizer, parts=parts)[0] == HEAD | BODY


def test_frozen_batch_normalization_uses_its_running_statistics_again_after_validation():
    _, classifier = changed(freeze="always", epochs=2)
    classifier.train()
    assert [module.training for module in classifier.network] == [True, False, True, True, True, True]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_no_bit(processes):
    values = {"freeze": 1, "optimizer": "adamw", "epochs": 3}
    assert trained(net, processes=processes, **values) == trained(net, processes=1, **values)


def test_training_resumes_in_either_phase_with_the_same_bytes(tmp_path):
    values = {"freeze": 1, "epochs": 2, "optimizer": "adamw", "log_every": 1, "checkpoint_every": 1, "processes": 1}
    weights, _ = trained(net, **values)
    for step in range(1, 6):
        assert stopped_and_resumed(step, net, tmp_path / str(step), **values)[0] == weights, step


def test_the_head_is_the_last_layer():
    squeezed = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(), nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)))
    assert head_of(squeezed) == {"1.1.weight", "1.1.bias"}
    assert head_of(nn.ReLU()) == set()
