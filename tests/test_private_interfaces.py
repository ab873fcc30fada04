"""Interfaces that PyTorch, MLflow and DVC do not promise, and what this project relies on in each.

The version pins in pyproject.toml are wide. A release that changes one of these fails here, and the message names it.
What is used of MLflow's store and monitor is in tests/test_mlflow_internals.py.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import version

import pytest
import torch

from classifier.repository.dvc import SIGNALLED, reads
from tests.samples import ROOT

TRIED = {"torch": "2.14.1", "mlflow": "3.17.2", "dvc": "3.67.1"}
# Operator -> its schema in PyTorch; {lr} is a number, or a tensor in an overload of its own.
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


def changed(package: str, what: str) -> str:
    """The message of a failure: which version changed what."""
    return f"{package} {version(package)} changed {what}; {TRIED[package]} had what this project relies on"


def sources() -> str:
    return "\n".join(
        path.read_text() for package in ("classifier", "stages") for path in (ROOT / package).rglob("*.py")
    )


def test_every_private_interface_in_the_code_is_checked_here():
    text = sources()
    assert set(re.findall(r"\btorch\.(_\w+)", re.sub(r"torch\._dynamo", "", text))) == set(OPERATORS)
    imported = {
        f"{module}.{name.split()[0]}"
        for module, names in re.findall(rf"from ((?:{INNER})[\w.]*) import ([\w, ]+)", text)
        for name in names.split(",")
    }
    assert imported == IMPORTS
    assert not re.findall(rf"^\s*import (?:{INNER})\b", text, re.M)


@pytest.mark.parametrize("name", OPERATORS)
def test_torch_operators_have_these_arguments(name):
    operator, what = getattr(torch.ops.aten, name), changed("torch", f"torch.{name}")
    kinds = {"default": "float", "tensor_lr": "Tensor"} if "{lr}" in OPERATORS[name] else {"default": ""}
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


def test_mlflow_scoring_server_answers_a_bad_request_with_status_400():
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    found = MlflowException("pixels", error_code=BAD_REQUEST).get_http_status_code()
    assert found == 400, changed("mlflow", "the status of BAD_REQUEST")


def test_dvc_configuration_is_read_and_written_by_its_own_class(tmp_path):
    """A clone or a worktree gets the project's cache and remotes (`classifier.repository.dvc`)."""
    from dvc.config import Config, merge

    folder = tmp_path / ".dvc"
    folder.mkdir()
    (folder / "config").write_text("['remote \"store\"']\n    url = /some/where\n")
    what = changed("dvc", "dvc.config")
    config = Config(str(folder))
    assert config.load_one("repo")["remote"]["store"]["url"] == "/some/where", what
    with config.edit("local") as local:
        merge(local, {"remote": {"other": {"url": "/else/where"}}})
        local["cache"]["dir"] = "/cache"
    again = Config(str(folder))
    assert set(again["remote"]) == {"store", "other"}, what
    assert again["cache"]["dir"] == "/cache", what
    assert "/cache" in (folder / "config.local").read_text(), what


def test_dvc_lock_is_checked_by_its_own_schema(tmp_path):
    lock = tmp_path / "dvc.lock"
    lock.write_bytes((ROOT / "dvc.lock").read_bytes())
    assert reads(lock), changed("dvc", "the schema of dvc.lock")
    lock.write_text("schema: '2.0'\nstages:\n  train: 3\n")
    assert not reads(lock), changed("dvc", "the schema of dvc.lock")


def test_dvc_rwlock_names_processes_by_number_and_command():
    from dvc.rwlock import RWLOCK_FILE, SCHEMA

    held = {"write": {"data": {"pid": 1, "cmd": "dvc repro"}}, "read": {"raw": [{"pid": 1, "cmd": "dvc repro"}]}}
    assert (RWLOCK_FILE, SCHEMA(held)) == ("rwlock", held), changed("dvc", ".dvc/tmp/rwlock")


def test_dvc_experiments_are_references_under_refs_exps():
    from dvc.repo.experiments.refs import ExpRefInfo

    found = str(ExpRefInfo("a" * 40, "name"))
    assert found == f"refs/exps/aa/{'a' * 38}/name", changed("dvc", "where experiments are")


def test_dvc_passes_on_its_variables():
    import dvc.env

    names = {dvc.env.DVC_ROOT, dvc.env.DVC_EXP_NAME, dvc.env.DVC_EXP_BASELINE_REV}
    assert names == {"DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"}, changed("dvc", "the variables of its stages")


def test_dvc_says_how_a_stage_ended_after_the_word_error():
    """A sweep tells a killed stage from a failed one by it; reproduce quotes the line before the first ERROR."""
    from dvc.logger import ColorFormatter
    from dvc.stage.exceptions import StageCmdFailedError

    for status, signalled in ((-9, True), (137, True), (143, True), (1, False), (2, False)):
        said = str(StageCmdFailedError("python -m stages.train", status)).encode()
        assert bool(re.search(SIGNALLED, said)) == signalled, changed("dvc", f"its words for a failed stage: {said!r}")
    record = logging.LogRecord("dvc", logging.ERROR, "", 0, "failed", None, None)
    found = re.sub(r"\x1b\[\d*m", "", ColorFormatter().format(record))
    assert found.startswith("ERROR: "), changed("dvc", f"its messages: {found!r}")
