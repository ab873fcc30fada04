"""What a network costs, against PyTorch's own counter, which misses attention on a CPU."""

import csv
import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from classifier.networks.layers import costs_of
from classifier.networks.registry import build, specify
from tests.networks.test_registry import data, digits, write_own  # noqa: F401, fixtures


def costs(digits, network, size=32, channels=1):  # noqa: F811
    spec = specify(data(digits, channels, size), network)
    return costs_of(build(spec), spec)


def test_lenet5_layer_by_layer(digits):  # noqa: F811
    found = costs(digits, "lenet5")
    assert found.summary() == {
        "parameters": 61_706,
        "multiply_adds": 416_520,
        "weights_bytes": 4 * 61_706,
        "activations_bytes": found.activations_bytes,
    }
    assert list(csv.reader(io.StringIO(found.table().decode()))) == [
        ["layer", "kind", "output", "parameters", "multiply_adds"],
        ["conv1", "Conv2d", "6x28x28", "156", str(6 * 28 * 28 * 25)],
        ["conv2", "Conv2d", "16x10x10", "2416", str(16 * 10 * 10 * 6 * 25)],
        ["fc1", "Linear", "120", "48120", "48000"],
        ["fc2", "Linear", "84", "10164", "10080"],
        ["fc3", "Linear", "10", "850", "840"],
    ]


@pytest.mark.parametrize(
    ("network", "size"),
    [("mobilenet_v2", 40), ("resnet18", 33), ("swin_v2_t", 64), pytest.param("maxvit_t", 224, marks=pytest.mark.slow)],
)
def test_multiply_adds_are_those_that_pytorch_counts(digits, network, size):  # noqa: F811
    spec = specify(data(digits, 3, size), network)
    classifier = build(spec).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert 2 * costs_of(build(spec), spec).multiply_adds == counter.get_total_flops()


def test_attention_is_four_projections_and_two_products(digits):  # noqa: F811
    layers = {layer.name: layer for layer in costs(digits, "vit_b_32", size=64).layers}
    attention = layers["encoder.layers.encoder_layer_0.self_attention"]
    tokens, width = 5, 768
    assert attention.multiply_adds == 4 * tokens * width**2 + 2 * tokens**2 * width
    assert attention.output == (5, 768)


def test_memory_for_the_backward_pass_is_what_is_kept(digits, write_own):  # noqa: F811
    """A linear layer keeps its input; ReLU its output, which is the next layer's input."""
    write_own(
        "mine",
        "from torch import nn\n"
        "def net(channels, classes, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 50), nn.ReLU(), nn.Linear(50, classes))\n",
    )
    assert costs(digits, "mine:net").activations_bytes == 4 * (1024 + 50)
