"""Operations without a deterministic kernel are named with their layers."""

import pytest
import torch
from torch import nn
from torchvision import models

from classifier.errors import UserError
from classifier.training.determinism import layers_of, named_layers

# PyTorch's words, as CUDA's kernels raise them.
WORDS = (
    "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
)


def test_an_operation_is_named_with_its_layers():
    message = (
        r"^adaptive_avg_pool2d_backward_cuda has no deterministic kernel on this GPU; avgpool \(AdaptiveAvgPool2d\) "
        r"may need it: choose another .* or set train\.deterministic: false"
    )
    with pytest.raises(UserError, match=message), named_layers(models.alexnet(num_classes=2)):
        raise RuntimeError(WORDS)


def test_functions_are_said_to_be_in_the_forward_pass():
    assert layers_of("upsample_bilinear2d_backward_out_cuda", nn.ReLU()) == "a function of the network's forward pass"


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match=r"^mat1"), named_layers(nn.ReLU()):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.gpu
@pytest.mark.parametrize("strictly", [True, False])
def test_on_a_gpu_such_a_network_is_refused_unless_params_allow_it(cuda, strictly):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 2)).to(cuda)
    images = torch.rand(2, 1, 8, 8, device=cuda, requires_grad=True)
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    if strictly:
        with pytest.raises(UserError, match="0 \\(AdaptiveAvgPool2d\\)"), named_layers(network):
            network(images).sum().backward()
    else:
        with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
            network(images).sum().backward()
