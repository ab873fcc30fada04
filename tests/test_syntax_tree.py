"""What no line of ours does, read from the syntax trees: unpickle, evaluate, or hand a string to a shell."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from classifier.journal import new_journal
from classifier.store import known_store
from tests.samples import ROOT
from tests.test_ui import free_port

PACKAGES = ("classifier", "stages", "commands", "benchmarks", "tests")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "pty", "yaml"}
NAMES = {  # called or handed on, by whatever name they were imported
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "pd.read_pickle", "numpy.load", "np.load", "subprocess.getoutput", "tempfile.mktemp"),
    *("mlflow.pytorch.load_model", "mlflow.sklearn.load_model", "builtins.eval", "builtins.exec"),
}
ENDINGS = (".read_pickle", ".to_pickle", ".unsafe_load", ".extractall", ".extract")
SAFE_ARGUMENTS = {"shell": False, "allow_pickle": False, "weights_only": True, "verify": True}
SAFE_YAML = {"safe", "rt"}  # both build no objects but those of YAML itself
ALLOWED = {  # what makes the files that attack, and a terminal
    "tests/faults/test_hostile_model.py": {"import pickle", "torch.save", "os.system"},
    "tests/test_checkpoint.py": {"torch.save"},
    "tests/test_model_dir.py": {"torch.save"},
    "tests/test_console.py": {"import pty"},
    "tests/test_progress.py": {"import pty"},
}
LAST_WORD = """
import atexit, os, runpy, sys
atexit.register(lambda: print("PICKLES", "mlflow" in sys.modules, os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def problems(source: str) -> list[str]:
    tree, found = ast.parse(source), []
    imported = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [f"{module}{alias.name}" for alias in node.names]
            said = [f"import {name}" for name in names if name in NAMES or name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Attribute | ast.Name):
            said = [name for name in [full_name(node, imported)] if name in NAMES]
        elif isinstance(node, ast.Call):
            name = full_name(node.func, imported)
            said = [f"{name}()"] if name.endswith(ENDINGS) else []
            if name.split(".")[-1] == "YAML":
                typ = [each.value for each in node.keywords if each.arg in ("typ", None)] + node.args[:1]
                said += [ast.unparse(node) for each in typ if not is_constant(each, SAFE_YAML)]
            for keyword in node.keywords:
                looked_at = keyword.arg in SAFE_ARGUMENTS and name.split(".")[-1] != "write_atomic"
                if looked_at and not is_constant(keyword.value, {SAFE_ARGUMENTS[str(keyword.arg)]}):
                    said.append(f"{name}({ast.unparse(keyword)})")
        else:
            continue
        found += [f"line {node.lineno}: {each}" for each in said]
    return found


def imported_names(tree: ast.AST) -> dict[str, str]:
    """`t` -> `torch` for `import torch as t`, `l` -> `torch.load` for `from torch import load as l`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.expr, imported: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(node).partition(".")
    return f"{imported.get(first, first)}{dot}{rest}"


def is_constant(node: ast.expr, allowed: set[object]) -> bool:
    return isinstance(node, ast.Constant) and node.value in allowed


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell(path: Path):
    found = {problem.partition(": ")[2] for problem in problems((ROOT / path).read_text(encoding="utf-8"))}
    assert found <= ALLOWED.get(path.as_posix(), set())


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "import yaml", "from torch import load", "import dill.source"),
        *(
            "torch.load(f)",
            "from yaml import load",
            "eval('1')",
            "exec(x)",
            "numpy.load(f)",
            "np.load(f, allow_pickle=True)",
        ),
        *("subprocess.run('ls', shell=True)", "subprocess.run(x, shell=flag)", "os.system('ls')", "pd.read_pickle(f)"),
        *(
            "archive.extractall(path)",
            "requests.get(x, verify=False)",
            "YAML(typ='unsafe')",
            "mlflow.pytorch.load_model(u)",
        ),
        "Loader(weights_only=False)",
        *("import torch as t; t.load(f)", "from torch import load as read", "from torch import hub; hub.load(f)"),
        *("map(torch.load, files)", "import numpy as n; n.load(f)", "from os import system", "import pickle as p"),
        *("YAML(pure=True, typ='unsafe')", "YAML('unsafe')", "ruamel.yaml.YAML(typ=kind)", "YAML(**options)"),
    ],
)
def test_the_test_sees_each(line):
    assert problems(f"def f():\n    {line}\n")


def test_what_it_lets_pass():
    assert not problems(
        "subprocess.run(['ls'], shell=False)\nmodel.eval()\nYAML(typ='safe').load(text)\nnn.Module.load(x)"
    )


def test_every_file_is_read():
    assert {path.parts[0] for path in FILES} == set(PACKAGES)
    assert Path("classifier/tracking.py") in FILES


def test_models_are_logged_without_a_pickle_and_mlflow_is_told_to_load_none():
    """pyfunc with a loader module of ours: MLflow imports it from the model's own code, and it reads safetensors."""
    tree = ast.parse((ROOT / "classifier/tracking.py").read_text())
    (call,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".save_model")
    )
    assert ast.unparse(call.func) == "mlflow.pyfunc.save_model"
    arguments = {keyword.arg for keyword in call.keywords}
    assert {"loader_module", "data_path"} <= arguments
    assert not arguments & {"python_model", "artifacts"}, "those would be pickled"


def test_mlflows_own_pickle_loading_is_off(workspace, monkeypatch):
    """Whatever the environment says: open_store, which all that talks to MLflow calls first, turns it off."""
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    from classifier.tracking import open_store

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    open_store()
    assert not MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()


@pytest.mark.parametrize(
    "module", ["classifier.recorder", "commands.leaderboard", "commands.promote", "commands.compare"]
)
def test_it_is_off_in_each_process_of_ours_that_talks_to_mlflow(workspace, module):
    """As a process with the variable set to true: what it says when that process ends."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    arguments = {"commands.promote": ["0" * 8], "commands.compare": ["0" * 8, "1" * 8]}.get(module, [])
    if module == "classifier.recorder":
        journal = new_journal("train")
        values = {"store": known_store(), "experiment": "classifier", "params": {}, "tags": {}}
        journal.append("begin", stage="train", key="1", weights=None, name=None, user="a", **values)
        journal.release()
        arguments = [str(journal.folder)]
    ended = subprocess.run(
        [sys.executable, "-c", LAST_WORD, module, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines()[-1] == "PICKLES True false", ended.stdout + ended.stderr


def test_it_is_off_in_the_ui(tmp_path):
    """It takes the place of the process that turned it off."""
    (tmp_path / ".dvc").mkdir()
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    variables["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
    command = [sys.executable, "-m", "commands.ui", str(free_port())]
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL) as process:
        try:
            ui = psutil.Process(process.pid)
            while "mlflow" not in ui.cmdline():
                assert process.poll() is None
                time.sleep(0.05)
            assert ui.environ()["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        finally:
            process.terminate()
