"""The same bits as `torch.optim`, without what it imports."""

import subprocess
import sys

import pytest
import torch

from classifier.optimizer import make_optimizer
from tests.samples import ROOT, train_params

SHAPES = {"conv": (6, 3, 5, 5), "bias": (6,), "fc": (17, 23)}


def parameters():
    """One of them channels-last, as the CPU's convolutions have it."""
    torch.manual_seed(0)
    made = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    made["conv"].data = made["conv"].data.contiguous(memory_format=torch.channels_last)
    return made


def give_gradients(*all_parameters):
    for name in SHAPES:
        gradient = torch.randn(SHAPES[name])
        for parameters in all_parameters:
            parameters[name].grad = torch.empty_like(parameters[name]).copy_(gradient)


def from_torch(parameters, params):
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters.values(), weight_decay=params.weight_decay, fused=True)
    options = {"momentum": params.momentum, "nesterov": params.nesterov, "weight_decay": params.weight_decay}
    return torch.optim.SGD(parameters.values(), lr=0.1, **options, fused=True)


@pytest.mark.parametrize("rate_on_device", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
        {"optimizer": "adamw", "weight_decay": 0.01},
    ],
)
def test_the_bits_of_torch_optim(values, rate_on_device):
    params = train_params(**values)
    ours, theirs = parameters(), parameters()
    bad = torch.zeros(())
    optimizer, reference = make_optimizer(ours, params, bad), from_torch(theirs, params)
    reference.found_inf = bad
    for step in range(12):
        give_gradients(ours, theirs)
        bad.fill_(step == 7)  # an update that both skip
        rate = 0.1 / (step + 1)
        optimizer.step(torch.tensor(rate, dtype=torch.float64) if rate_on_device else rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)
    for name in SHAPES:
        for key, value in reference.state[theirs[name]].items():
            if value is not None:  # SGD without momentum
                assert torch.equal(optimizer.state()["step" if key == "step" else f"{name}/{key}"], value)


def test_what_torch_optim_imports_is_not_imported():
    """`torch._dynamo` takes over a second of every start."""
    script = (
        "import sys, torch; from classifier.training import fit; from classifier.model import Classifier, LeNet5\n"
        "from tests.samples import digits_split, train_params\n"
        "fit(Classifier(LeNet5(1, 10), [0.5], [1.0]), digits_split(60), digits_split(10), train_params(shift=1), "
        "torch.device('cpu'), lambda row: None)\n"
        "print([name for name in ('torch._dynamo', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
