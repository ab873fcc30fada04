"""What no line of ours does, read from the syntax trees: unpickle, evaluate, or hand a string to a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.samples import ROOT

PACKAGES = ("classifier", "stages", "commands", "benchmarks")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "pty", "yaml"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "pd.read_pickle", "numpy.load", "np.load", "subprocess.getoutput", "tempfile.mktemp"),
    *("mlflow.pytorch.load_model", "mlflow.sklearn.load_model", "builtins.eval", "builtins.exec"),
}
ENDINGS = (".read_pickle", ".to_pickle", ".unsafe_load", ".extractall", ".extract")
SAFE_ARGUMENTS = {"shell": False, "allow_pickle": False, "weights_only": True, "verify": True}


def problems(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
            if isinstance(node, ast.ImportFrom):
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [f"line {node.lineno}: from {name}" for name in full if name in CALLS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.endswith(
                (".read_pickle", ".to_pickle", ".unsafe_load", ".extractall", ".extract")
            ):
                found.append(f"line {node.lineno}: {name}()")
            if name == "YAML" and [ast.unparse(each) for each in (*node.args, *node.keywords)][:1] in (
                ["typ='unsafe'"],
                ["'unsafe'"],
            ):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            for keyword in node.keywords:
                if keyword.arg in SAFE_ARGUMENTS and name != "write_atomic":
                    safe = (
                        isinstance(keyword.value, ast.Constant) and keyword.value.value is SAFE_ARGUMENTS[keyword.arg]
                    )
                    if not safe:
                        found.append(f"line {node.lineno}: {name}({ast.unparse(keyword)})")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell(path: Path):
    assert problems((ROOT / path).read_text(encoding="utf-8")) == []


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
