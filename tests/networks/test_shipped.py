"""The networks of the folder networks/ that recipes use."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from classifier.errors import UserError
from classifier.networks.model import LeNet5, parameter_count
from networks.cifar import mirrored_resnet9
from networks.mnist import straightened, straightened_lenet5


def slanted(degrees: float) -> torch.Tensor:
    """Images `(4, 1, 32, 32)` of upright bars of several sizes off the centre, slanted, normalized."""
    images = torch.zeros(4, 1, 32, 32)
    for number, image in enumerate(images):
        image[0, 6 + number : 24, 13 + number : 16 + 2 * number] = 1
    shear = v2.functional.affine(images, 0.0, [0, 0], 1.0, [degrees, 0.0], InterpolationMode.BILINEAR)
    return (shear - 0.1) / 0.3


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre of the ink from that of the image, to the right and down, in pixels; its slant, in pixels a row."""
    ink = images[:, 0] - images.amin()
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    right, down = ((ink * each).sum((1, 2)) / ink.sum((1, 2)) for each in (x, y))
    from_x, from_y = x - right[:, None, None], y - down[:, None, None]
    return right, down, (ink * from_x * from_y).sum((1, 2)) / (ink * from_y**2).sum((1, 2))


def test_lenet5_normalized_over_the_batch_has_the_same_parameters():
    network = straightened_lenet5(1, 10, 32).train()
    ours = [parameter.shape for parameter in network.parameters()]
    assert ours == [parameter.shape for parameter in LeNet5(1, 10).parameters()]
    assert parameter_count(network) == 61_706
    seen: list[torch.Tensor] = []
    for layer in network.network:
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            layer.register_forward_hook(lambda layer, given, values: seen.append(values))
    network(torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [values.shape[1] for values in seen] == [6, 16, 120, 84]
    for values in seen:
        deviations, means = torch.std_mean(values.transpose(0, 1).flatten(1), 1, correction=0)
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)
        assert deviations.max() < 1.01
        assert deviations.median() > 0.9


@pytest.mark.parametrize("degrees", [-25.0, 0.0, 10.0, 30.0])
def test_slanted_bars_are_upright_and_in_the_middle_after_straightening(degrees):
    images = slanted(degrees)
    before = moments(images)
    assert before[0].abs().max() > 1
    assert before[2].abs().min() >= abs(degrees) / 100
    for found in moments(straightened(images, torch.zeros(4, 2))):
        assert found.abs().max() < 0.1
    right, down, slant = moments(straightened(images, torch.tensor([2.0, -1.0]).expand(4, 2)))
    torch.testing.assert_close(right, torch.full((4,), -2.0), atol=0.1, rtol=0)
    torch.testing.assert_close(down, torch.full((4,), 1.0), atol=0.1, rtol=0)
    assert slant.abs().max() < 0.1


@pytest.mark.parametrize("value", [-0.4, 0.0, 3.0])
def test_an_image_without_ink_stays(value):
    images = torch.full((2, 1, 32, 32), value)
    torch.testing.assert_close(straightened(images, torch.ones(2, 2)), images)


def test_half_of_a_batch_is_straightened_in_training():
    network, images = straightened_lenet5(1, 10, 32), slanted(20.0)
    given: list[torch.Tensor] = []
    network.network.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    torch.manual_seed(0)
    network.train()(images)
    assert torch.equal(given[0][2:], images[2:])
    right, down, slant = moments(given[0][:2])
    assert slant.abs().max() < 0.1
    assert 0 < right.abs().max() < 1.1
    assert 0 < down.abs().max() < 1.1


def test_at_evaluation_logits_are_means_over_straightened_and_shifted_views():
    network, images = straightened_lenet5(1, 10, 32).eval(), slanted(20.0)
    upright = straightened(images, torch.zeros(4, 2))
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    views = [each.roll(shift, (-2, -1)) for each in (images, upright) for shift in shifts]
    with torch.no_grad():
        expected = torch.stack([network.network(view) for view in views]).mean(0)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(expected, network.network(images), atol=2e-3)


def test_lenet5_of_another_size_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"takes images of 32x32 pixels, not 64x64: set normalize\.image_size to 32"):
        straightened_lenet5(1, 10, 64)


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
