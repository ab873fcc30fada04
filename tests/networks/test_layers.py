"""What a network costs, against PyTorch's own counter, which misses attention on a CPU."""

import csv
import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from classifier.errors import UserError
from classifier.networks.layers import check_last_batch, costs_of
from classifier.networks.registry import build, specify
from tests.networks.test_registry import data, digits, write_own  # noqa: F401, fixtures


def costs(digits, network, size=32, channels=1):  # noqa: F811
    spec = specify(data(digits, channels, size), network)
    return costs_of(build(spec), spec)


def test_lenet5_layer_by_layer(digits):  # noqa: F811
    found = costs(digits, "lenet5")
    assert found.metrics() == {
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


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (
            "alexnet",
            32,
            r"alexnet does not take images of 32x32 pixels \(.*\): set normalize.image_size to at least 63",
        ),
        ("inception_v3", 64, r"inception_v3 does not take .* 64x64 .* set normalize.image_size to at least 75 pixels"),
    ],
)
def test_images_that_are_too_small_are_refused_in_one_line(digits, network, size, message):  # noqa: F811
    with pytest.raises(UserError, match=message) as caught:
        costs(digits, network, size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("nn.Flatten()", r"gives \(2, 1024\) for 2 images: allowed are logits \(2, 10\), one for each image and class"),
        ("Pair()", r"gives tuple for 2 images: allowed are logits \(2, 10\)"),
    ],
)
def test_what_is_not_logits_is_named(digits, write_own, result, message):  # noqa: F811
    write_own(
        "mine",
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x, x\n"
        f"def net(channels, classes, size):\n    return {result}\n",
    )
    with pytest.raises(UserError, match=message):
        costs(digits, "mine:net")


def test_an_error_in_ones_own_forward_pass_keeps_its_traceback(digits, write_own):  # noqa: F811
    write_own("mine", "from torch import nn\ndef net(channels, classes, size):\n    return nn.Linear(7, classes)\n")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        costs(digits, "mine:net")


@pytest.mark.parametrize(
    ("network", "size", "refused"), [("resnet18", 32, True), ("resnet18", 64, False), ("lenet5", 32, False)]
)
def test_a_batch_of_a_single_image_is_refused_where_batch_normalization_has_one_value(digits, network, size, refused):  # noqa: F811
    spec = specify(data(digits, 1, size), network)
    classifier = build(spec)
    check_last_batch(classifier, spec, 97, 33)
    if refused:
        message = "train.batch_size: 32 makes a batch of a single one of the 97 training images, .*; allowed is 33, or"
        with pytest.raises(UserError, match=message):
            check_last_batch(classifier, spec, 97, 32)
        with pytest.raises(UserError, match=r"train\.batch_size: 1 makes"):
            check_last_batch(classifier, spec, 96, 1)
    else:
        check_last_batch(classifier, spec, 97, 32)


def test_state_that_is_no_tensor_is_refused(digits, write_own):  # noqa: F811
    write_own(
        "mine",
        "from torch import nn\n"
        "class Counted(nn.Sequential):\n"
        "    def get_extra_state(self):\n"
        "        return {}\n"
        "def net(channels, classes, size):\n"
        "    return Counted(nn.Flatten(), nn.Linear(size * size, classes))\n",
    )
    with pytest.raises(UserError, match=r"network mine:net keeps _extra_state, which is no tensor: make it a buffer"):
        costs(digits, "mine:net")
