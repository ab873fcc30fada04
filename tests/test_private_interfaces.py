"""Interfaces that packages do not promise: all that the code uses are listed here, and those of PyTorch are tried.

The version pins in pyproject.toml are wide. A release that changes one of these fails a test, whose message names it.
tests/repository/test_dvc.py and tests/tracking/test_internals.py try what is used of DVC and of MLflow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
import torch

from tests.samples import ROOT
from tests.tried import changed

# Operator, or one of its overloads -> its schema in PyTorch; {lr} is a number, or a tensor in an overload of its own.
OPERATORS = {
    "_fused_sgd_": (
        "(Tensor(a!)[] self, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffer_list, *, float weight_decay, "
        "float momentum, {lr} lr, float dampening, bool nesterov, bool maximize, bool is_first_step, "
        "Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
    ),
    "_fused_adamw_": (
        "(Tensor(a!)[] self, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
        "Tensor(e!)[] max_exp_avg_sqs, Tensor[] state_steps, *, {lr} lr, float beta1, float beta2, "
        "float weight_decay, float eps, bool amsgrad, bool maximize, Tensor? grad_scale=None, "
        "Tensor? found_inf=None) -> ()"
    ),
    "_amp_foreach_non_finite_check_and_unscale_": ("(Tensor(a!)[] self, Tensor(b!) found_inf, Tensor inv_scale) -> ()"),
    "_foreach_copy_": "(Tensor(a!)[] self, Tensor[] src, bool non_blocking=False) -> ()",
    "_foreach_add_.Scalar": "(Tensor(a!)[] self, Scalar scalar) -> ()",
    "_foreach_sub_.List": "(Tensor(a!)[] self, Tensor[] other, *, Scalar alpha=1) -> ()",
    "_foreach_mul_.Scalar": "(Tensor(a!)[] self, Scalar scalar) -> ()",
    "_foreach_sub.List": "(Tensor[] self, Tensor[] other, *, Scalar alpha=1) -> Tensor[]",
}
IMPORTS = {  # everything imported from DVC, which promises dvc.api alone, and from MLflow's inner modules
    "dvc.config.Config",
    "dvc.config.merge",
    "dvc.schema.COMPILED_LOCKFILE_SCHEMA",
    "mlflow.protos.databricks_pb2.BAD_REQUEST",
    "mlflow.store.db.db_types.DATABASE_ENGINES",
    "mlflow.system_metrics.system_metrics_monitor.SystemMetricsMonitor",
}
INNER = r"dvc(?!_)|mlflow\.(?:store|system_metrics|utils|server|environment_variables|protos)"


def sources() -> list[str]:
    return [path.read_text() for package in ("classifier", "stages") for path in (ROOT / package).rglob("*.py")]


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_private_interface_that_the_code_uses_is_listed():
    used = {name for source in sources() for name in re.findall(r"\btorch[\w.]*\.(_[a-z]\w+)", source)}
    assert used - {"_dynamo", "_get_default_mps_generator"} == {name.partition(".")[0] for name in OPERATORS}
    assert {name for source in sources() for name in imported(source) if re.match(INNER, name)} == IMPORTS


def test_torch_has_a_generator_for_apples_gpus():
    assert callable(torch.mps._get_default_mps_generator), changed("torch", "torch.mps._get_default_mps_generator")


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_operators_have_these_arguments(name):
    own, _, overload = name.partition(".")
    operator, what = getattr(torch.ops.aten, own), changed("torch", f"torch.{own}")
    kinds = {"default": "float", "tensor_lr": "Tensor"} if "{lr}" in OPERATORS[name] else {overload or "default": ""}
    assert set(operator.overloads()) >= set(kinds), what
    for overload, kind in kinds.items():
        found = str(getattr(operator, overload)._schema)
        assert arguments(found[found.index("(") :]) == arguments(OPERATORS[name].replace("{lr}", kind)), what


def arguments(schema: str) -> tuple[list[str], set[str]]:
    """Those by position in their order, and those by name."""
    positional, _, named = schema.strip("()").replace(") -> ", "").partition(" *, ")
    return positional.split(", "), set(named.split(", "))


@pytest.mark.parametrize("name", ["_fused_sgd_", "_fused_adamw_"])
def test_torch_fused_updates_skip_when_a_gradient_is_not_finite(name):
    """`found_inf` of 1 leaves the parameters alone; 0 does not."""
    options = {"weight_decay": 0.0, "maximize": False}
    if name == "_fused_sgd_":
        options |= {"momentum": 0.0, "lr": 0.5, "dampening": 0.0, "nesterov": False, "is_first_step": False}
        states: list[list[torch.Tensor]] = [[]]
    else:
        options |= {"lr": 0.5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
        states = [[torch.zeros(2)], [torch.zeros(2)], [], [torch.ones(())]]
    for found_inf, expected in ((1.0, [1.0, 1.0]), (0.0, [0.5, 1.5])):
        parameter = torch.ones(2)
        gradient = torch.tensor([1.0, -1.0])
        getattr(torch, name)([parameter], [gradient], *states, found_inf=torch.tensor(found_inf), **options)
        assert torch.allclose(parameter, torch.tensor(expected)), changed("torch", f"what torch.{name} computes")


@pytest.mark.parametrize(("value", "found"), [(1.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_torch_amp_check_reports_what_is_not_finite_and_keeps_the_report(value, found):
    gradients, found_inf = [torch.tensor([1.0, 2.0]), torch.tensor(value)], torch.zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, torch.ones(()))
    what = changed("torch", "what torch._amp_foreach_non_finite_check_and_unscale_ reports")
    assert found_inf.item() == found, what
    assert gradients[0].tolist() == [1.0, 2.0], what
    torch._amp_foreach_non_finite_check_and_unscale_([torch.zeros(1)], found_inf, torch.ones(()))
    assert found_inf.item() == found, what
