"""What a network must be and give before it is trained; the message says what is wrong with it."""

import pytest
import torch

from classifier.errors import UserError
from classifier.networks.checks import check_last_batch, check_network
from classifier.networks.registry import build, specify
from tests.networks.test_registry import data, digits, write_own  # noqa: F401, fixtures

MINE = """
import random, time
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.calls, self.linear = 0, nn.Linear(inputs, classes)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        self.calls += 1
        return {result}

def net(channels, classes, size):
    return Net(channels * size * size, classes){change}
"""


def check(digits, network, size=32, channels=1):  # noqa: F811
    spec = specify(data(digits, channels, size), network)
    check_network(build(spec), spec)


def refused(digits, network, size=32):  # noqa: F811
    with pytest.raises(UserError) as caught:
        check(digits, network, size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        check(digits, network, size)
    assert "\n" not in str(caught.value)


def test_an_error_in_ones_own_forward_pass_keeps_its_traceback(digits, write_own):  # noqa: F811
    write_own("mine", "from torch import nn\ndef net(channels, classes, size):\n    return nn.Linear(7, classes)\n")
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        check(digits, "mine:net")
    assert caught.value.__notes__ == ["The network mine:net raises this for images (2, 1, 32, 32)."]


@pytest.mark.parametrize(
    ("network", "size", "refused"), [("resnet18", 32, True), ("resnet18", 64, False), ("lenet5", 32, False)]
)
def test_a_batch_of_a_single_image_is_refused_where_batch_normalization_has_one_value(digits, network, size, refused):  # noqa: F811
    spec = specify(data(digits, 1, size), network)
    classifier = build(spec)
    check_last_batch(classifier, spec, 97, 33)
    if refused:
        message = "train.batch_size: 32 leaves a batch of a single one of the 97 training images, .*; allowed is 33, or"
        with pytest.raises(UserError, match=message):
            check_last_batch(classifier, spec, 97, 32)
        with pytest.raises(UserError, match=r"train\.batch_size: 1 leaves"):
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
    with pytest.raises(
        UserError, match=r"network mine:net keeps _extra_state, which is not a tensor: make it a buffer"
    ):
        check(digits, "mine:net")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("images", "gives (2, 1, 32, 32) torch.float32 for 2 images: allowed are logits (2, 10)"),
        ("(logits, logits)", "gives tuple for 2 images: allowed are logits (2, 10)"),
        ("logits[:1]", "gives (1, 10) torch.float32 for 2 images"),
        ("logits.long()", "gives (2, 10) torch.int64 for 2 images"),
        ("logits.detach()", "gives logits without gradients: none of its parameters can be trained"),
        ("logits / 0", "gives NaN or Inf for random images before it is trained"),
        *(
            (f"logits + {other}", "gives different logits for the same images and the same seed")
            for other in ("time.perf_counter_ns() % 1_000_003", "random.random()", "np.random.rand()", "self.calls")
        ),
    ],
)
def test_logits_that_cannot_be_trained_or_reproduced_are_named(digits, write_own, result, message):  # noqa: F811
    write_own("mine", MINE.format(result=result, change=""))
    assert f"the network mine:net {message}" in refused(digits, "mine:net")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (".half()", "the network mine:net has the parameter linear.weight torch.float16: allowed is torch.float32"),
        (".requires_grad_(False)", "gives logits without gradients"),
        (
            ".apply(lambda each: isinstance(each, nn.Linear) and nn.init.constant_(each.bias, random.random()))",
            "begins with different weights for the same seed: draw them with torch",
        ),
    ],
)
def test_weights_that_cannot_be_trained_or_reproduced_are_named(digits, write_own, change, message):  # noqa: F811
    write_own("mine", MINE.format(result="logits", change=change))
    assert message in refused(digits, "mine:net")


def test_what_torch_draws_and_buffers_remember_is_allowed(digits, write_own):  # noqa: F811
    write_own(
        "mine",
        "import torch\n"
        "from torch import nn\n"
        "class Counted(nn.Linear):\n"
        "    def __init__(self, *sizes):\n"
        "        super().__init__(*sizes)\n"
        "        self.register_buffer('calls', torch.zeros(()))\n"
        "    def forward(self, images):\n"
        "        self.calls = self.calls + 1\n"
        "        return super().forward(images) * self.calls\n"
        "def net(channels, classes, size):\n"
        "    linear = nn.utils.parametrizations.spectral_norm(Counted(channels * size * size, classes))\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(), linear)\n",
    )
    spec = specify(data(digits), "mine:net")
    classifier = build(spec)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    check_network(classifier, spec)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_lazy_layers_are_refused(digits, write_own):  # noqa: F811
    write_own("mine", "from torch import nn\ndef net(channels, classes, size):\n    return nn.LazyLinear(classes)\n")
    assert "network mine:net: weight belongs to a lazy layer" in refused(digits, "mine:net")
