"""Our formulas against PyTorch's schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from classifier.training.schedule import learning_rate
from tests.samples import train_params


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < steps else None
    return rates


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (97, 0.25), (1000, 0.5), (400, 0.9)])
def test_one_cycle_is_torchs(steps, warmup):
    params = train_params(schedule="one_cycle", learning_rate=0.3, warmup_fraction=warmup)
    expected = torch_rates(lambda o: OneCycleLR(o, max_lr=0.3, total_steps=steps, pct_start=warmup), steps)
    assert [learning_rate(step, steps, params) for step in range(steps)] == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchs():
    params = train_params(schedule="cosine", learning_rate=0.3)
    expected = torch_rates(lambda o: CosineAnnealingLR(o, T_max=50), 50)
    assert [learning_rate(step, 50, params) for step in range(50)] == pytest.approx(expected, rel=1e-9)


def test_constant():
    params = train_params(schedule="constant", learning_rate=0.3)
    assert {learning_rate(step, 9, params) for step in range(9)} == {0.3}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.99])
def test_one_cycle_of_few_steps_stays_within_its_range(steps, warmup):
    params = train_params(schedule="one_cycle", learning_rate=0.3, warmup_fraction=warmup)
    rates = [learning_rate(step, steps, params) for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates)
    assert warmup > 0 or rates[0] == 0.3
