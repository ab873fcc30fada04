"""The same bits as `torch.optim`, without what it imports; of Muon nearly the same numbers."""

import pytest
import torch

from classifier.training.optimizer import layer_factors, make_optimizer, orthogonal
from tests.processes import run_without
from tests.samples import train_params

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


def from_torch(parameters, params, fused=True):
    if params.optimizer == "adamw":
        return torch.optim.AdamW(parameters.values(), weight_decay=params.weight_decay, fused=fused)
    options = {"momentum": params.momentum, "nesterov": params.nesterov, "weight_decay": params.weight_decay}
    return torch.optim.SGD(parameters.values(), lr=0.1, **options, fused=fused)


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
                assert torch.equal(optimizer.state()[f"{name}/{key}"], value)


@pytest.mark.parametrize("values", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw"}])
def test_layers_have_the_learning_rates_of_torch_optims_groups(values):
    params = train_params(layer_decay=0.01, **values)
    ours, theirs = parameters(), parameters()
    optimizer = make_optimizer({f"{name}.weight": value for name, value in ours.items()}, params, torch.zeros(()))
    factors = {"conv": 0.01, "bias": 0.1, "fc": 1.0}
    reference = from_torch(theirs, params)
    reference.param_groups.clear()
    for name, factor in factors.items():
        reference.add_param_group({"params": [theirs[name]], "lr": 0.1 * factor})
    for _ in range(3):
        give_gradients(ours, theirs)
        optimizer.step(0.1)
        reference.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)


def test_layers_are_modules_in_the_networks_order():
    names = [
        "conv1.weight",
        "conv1.bias",
        "layer1.0.conv.weight",
        "layer1.0.bn.weight",
        "layer1.0.bn.bias",
        "fc.weight",
    ]
    assert layer_factors(names, 0.125) == pytest.approx(
        dict(zip(names, (0.125, 0.125, 0.25, 0.5, 0.5, 1), strict=True))
    )
    assert set(layer_factors(names, 1.0).values()) == {1.0}
    assert layer_factors(names[:1], 0.5) == {"conv1.weight": 0.5}


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_parameter_without_gradient_is_left_alone_as_in_torch_optim(name):
    params = train_params(optimizer=name, weight_decay=0.1)
    ours, theirs = parameters(), parameters()
    optimizer = make_optimizer(ours, params, torch.zeros(()))
    for frozen in ("fc", "conv", None):  # in turn: a layer that is trained later counts its own steps
        give_gradients(ours, theirs)
        if frozen:
            ours[frozen].grad = theirs[frozen].grad = None
            before = ours[frozen].detach().clone()
        optimizer.step(0.1)
        assert not frozen or torch.equal(ours[frozen], before)
        if name != "muon":
            if frozen == "fc":
                reference = from_torch(theirs, params, fused=name == "adamw")  # that of SGD takes no new parameters
                reference.param_groups[0]["lr"] = 0.1
            reference.step()
            for shape in SHAPES:
                torch.testing.assert_close(ours[shape], theirs[shape], rtol=0, atol=1e-6 if name == "sgd" else 0)


@pytest.mark.parametrize("rate_on_device", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_that_of_torch_optim_but_for_its_bfloat16(nesterov, rate_on_device):
    params = train_params(optimizer="muon", momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    ours, theirs = parameters(), parameters()
    theirs["conv"] = torch.nn.Parameter(theirs["conv"].detach().flatten(1))  # torch.optim takes matrices alone
    start = {name: value.detach().clone() for name, value in theirs.items()}
    optimizer = make_optimizer(ours, params, torch.zeros(()))
    matrices, biases = [theirs["conv"], theirs["fc"]], [theirs["bias"]]
    options = {"momentum": 0.8, "nesterov": nesterov, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}
    references = [
        torch.optim.Muon(matrices, weight_decay=0.1, **options),
        torch.optim.AdamW(biases, weight_decay=0.1, fused=True),
    ]
    for step in range(5):
        give_gradients(ours)
        for name in SHAPES:
            theirs[name].grad = ours[name].grad.reshape(theirs[name].shape).clone()
        rate = 0.1 / (step + 1)
        optimizer.step(torch.tensor(rate, dtype=torch.float64) if rate_on_device else rate)
        for reference in references:
            reference.param_groups[0]["lr"] = rate
            reference.step()
    assert torch.equal(ours["bias"], theirs["bias"])
    for name in ("conv", "fc"):
        moved, expected = (values[name].detach().flatten(1) - start[name] for values in (ours, theirs))
        assert (moved - expected).norm() < 0.02 * expected.norm()


def test_muon_skips_the_update_of_a_bad_step():
    params = train_params(optimizer="muon", momentum=0.8)
    made, bad = parameters(), torch.zeros(())
    optimizer = make_optimizer(made, params, bad)
    give_gradients(made)
    optimizer.step(0.1)
    before = [value.detach().clone() for value in (*made.values(), *optimizer.state().values())]
    for parameter in made.values():
        parameter.grad = torch.full_like(parameter, torch.nan)
    bad.fill_(1)
    optimizer.step(0.1)
    assert all(map(torch.equal, before, (*made.values(), *optimizer.state().values())))
    give_gradients(made)
    bad.fill_(0)
    optimizer.step(0.1)
    assert not any(map(torch.equal, before, (*made.values(), *optimizer.state().values())))


def test_muon_updates_each_model_of_a_stack_as_if_alone():
    params = train_params(optimizer="muon", momentum=0.8)
    alone = [parameters() for _ in range(3)]
    give_gradients(alone[0], alone[1])  # two models alike, and one that is not
    give_gradients(alone[2])
    stack = {name: torch.stack([model[name].detach() for model in alone]) for name in SHAPES}
    for name, stacked in stack.items():
        stacked.grad = torch.stack([model[name].grad for model in alone])
    make_optimizer(stack, params, torch.zeros(()), stacked=1).step(0.1)
    for number, model in enumerate(alone):
        make_optimizer(model, params, torch.zeros(())).step(0.1)
        for name in SHAPES:
            torch.testing.assert_close(stack[name][number], model[name].detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 25), (25, 6), (3, 10, 84), (12, 12)])
def test_orthogonal_maps_singular_values_and_keeps_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(matrices), u * values[..., None, :] @ v, rtol=0, atol=1e-6)
    assert orthogonal(torch.zeros(4, 5)).eq(0).all()


def test_what_torch_optim_imports_is_not_imported():
    """`torch._dynamo` takes over a second of every start."""
    script = (
        "import torch\n"
        "from classifier.networks.model import Classifier, LeNet5\n"
        "from classifier.training.loop import fit\n"
        "from tests.samples import digits_split, train_params\n"
        "fit(Classifier(LeNet5(1, 10), [0.5], [1.0]), digits_split(60), digits_split(10), train_params(shift=1), "
        "torch.device('cpu'), lambda seed, row: None)"
    )
    run_without(["torch._dynamo", "torchvision"], script)
