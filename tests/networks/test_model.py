"""LeNet-5's size and function, and the normalization that travels with it."""

import pytest
import torch
from torch.nn.functional import max_pool2d, relu

from classifier.networks.model import Classifier, LeNet5, parameter_count, pooled


def test_lenet5_has_61706_parameters():
    assert parameter_count(LeNet5(1, 10)) == 61_706


@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 10), (1, 26)])
def test_channels_and_classes_follow_the_data(channels, classes):
    assert LeNet5(channels, classes)(torch.zeros(7, channels, 32, 32)).shape == (7, classes)


def test_layers_are_those_of_the_paper():
    network = LeNet5(1, 10)
    assert [tuple(p.shape) for p in network.parameters() if p.dim() > 1] == [
        (6, 1, 5, 5),
        (16, 6, 5, 5),
        (120, 400),
        (84, 120),
        (10, 84),
    ]


def test_pooling_before_relu_is_the_tutorials_function():
    network, images = LeNet5(1, 10), torch.randn(5, 1, 32, 32)
    x = max_pool2d(relu(network.conv1(images)), 2)
    x = max_pool2d(relu(network.conv2(x)), 2).flatten(1)
    tutorial = network.fc3(relu(network.fc2(relu(network.fc1(x)))))
    assert torch.equal(network.eval()(images), tutorial)


def test_the_faster_pooling_of_inference_has_the_same_bits():
    x = torch.randn(5, 6, 28, 28, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with equal values
    with torch.inference_mode():
        found = pooled(x)
    assert torch.equal(found, max_pool2d(x, 2))
    assert torch.equal(pooled(x), found)


def test_classifier_normalizes_raw_pixels_per_channel():
    classifier = Classifier(torch.nn.Identity(), mean=[0.5, 0.0, 0.25], std=[1.0, 0.5, 0.25])
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 3, 1, 3)
    expected = torch.tensor([[-0.5, -0.3, 0.5], [0.0, 0.4, 2.0], [-1.0, -0.2, 3.0]]).reshape(1, 3, 1, 3)
    torch.testing.assert_close(classifier(pixels), expected)


def test_state_holds_the_network_alone():
    assert all(name.startswith("network.") for name in Classifier(LeNet5(1, 10), [0.5], [1.0]).state_dict())
