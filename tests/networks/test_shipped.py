"""The networks of the folder networks/ that recipes use."""

import pytest
import torch

from classifier.errors import UserError
from classifier.networks.model import parameter_count
from networks.cifar import mirrored_resnet9
from networks.mnist import shifted_lenet5


def test_the_mean_over_shifted_copies_is_of_lenet5_which_is_trained_as_it_is():
    network = shifted_lenet5(1, 10, 32)
    assert parameter_count(network) == 61_706
    images = torch.zeros(2, 1, 32, 32)
    images[:, :, 3:-3, 3:-3] = torch.rand(2, 1, 26, 26, generator=torch.Generator().manual_seed(0))
    copies = [images.roll((down, right), (-2, -1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    lenet5 = network.network
    with torch.no_grad():
        assert torch.equal(network.train()(images), lenet5.train()(images))
        expected = torch.stack([lenet5.eval()(copy) for copy in copies]).mean(0)
        torch.testing.assert_close(network.eval()(images), expected)
        assert not torch.allclose(expected, lenet5(images), atol=1e-4)


def test_lenet5_of_another_size_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"takes images of 32x32 pixels, not 64x64: set normalize\.image_size to 32"):
        shifted_lenet5(1, 10, 64)


def test_the_mean_over_both_mirror_images_is_of_a_network_that_is_trained_as_it_is():
    network = mirrored_resnet9(3, 10, 32)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = network.network
    with torch.no_grad():
        expected = (plain.eval()(images) + plain(images.flip(-1))) / 2
        torch.testing.assert_close(network.eval()(images), expected)
        torch.testing.assert_close(network(images.flip(-1)), expected)
        torch.manual_seed(0)
        assert torch.equal(network.train()(images), plain.train()(images))
