"""The convolutions as a CPU trains them."""

import pytest
import torch

from classifier.networks.model import LeNet5
from classifier.networks.rows import RowConvolutions, places


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_way_it_trains_on_a_cpu_is_the_same_function_with_the_same_gradients(channels, layout):
    """In float64, where another order of sums shows in the last digits alone."""
    network, images = LeNet5(channels, 10).double().to(memory_format=layout), torch.randn(5, channels, 32, 32).double()
    results = []
    for mode in (True, False):
        logits = network.train(mode)(images)
        gradients = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
        results.append([logits, *gradients])
    for trained, plain in zip(*results, strict=True):
        torch.testing.assert_close(trained, plain, rtol=1e-12, atol=1e-12)


def test_a_flat_background_has_the_same_gradients_too():
    """Where all of a window are equal, which one of them is the largest does not matter."""
    network, images = LeNet5(1, 10).double(), torch.zeros(3, 1, 32, 32).double()
    images[:, :, 10:20, 10:20] = 1
    plain, trained = (
        torch.autograd.grad(network.train(mode)(images).sum(), network.conv1.weight) for mode in (False, True)
    )
    torch.testing.assert_close(trained, plain, rtol=1e-12, atol=1e-12)


def test_places_and_pooling_copy_nothing():
    """On images and filters in channels-last memory every view is one."""
    network, images = LeNet5(1, 10).to(memory_format=torch.channels_last), torch.randn(5, 1, 32, 32)
    output = torch.randn(5, 32, 7, 28).to(memory_format=torch.channels_last)
    assert places(output).data_ptr() == output.data_ptr()
    assert places(output).shape == (5, 16, 7, 56)
    result = RowConvolutions(network.conv1, network.conv2)(network.conv1, network.conv2, images)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_each_place_holds_its_rows_in_the_order_that_pooling_needs():
    """Channels of the first convolution's output: rows 0 and 2 of eight channels, then rows 1 and 3."""
    network, images = LeNet5(1, 10), torch.randn(1, 1, 32, 32)
    plain, inside = network.conv1(images), {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        inside.setdefault("first", x.detach())
        return places(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifier.networks.rows.places", keep)
        network.rows(network.conv1, network.conv2, images)
    blocks = inside["first"].unflatten(1, (4, 8))  # (1, 4, 8, 7, 28)
    for block, row in enumerate((0, 2, 1, 3)):
        torch.testing.assert_close(blocks[:, block, :6], plain[:, :, row::4])
        assert not blocks[:, block, 6:].any()
