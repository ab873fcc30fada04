"""Nothing unpickles, evaluates text or starts a shell: ruff checks the code, a variable stops MLflow at run time."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from classifier.recording.journal import new_journal
from classifier.recording.store import known_store
from tests.commands.test_ui import free_port
from tests.processes import words_of
from tests.samples import ROOT

REFUSED = {  # code -> the rule of ruff that refuses it
    **dict.fromkeys(("import pickle as p", "from pickle import loads", "import dill.source"), "TID251"),
    **dict.fromkeys(("import joblib", "import yaml", "from yaml import load", "import marshal, shelve"), "TID251"),
    **dict.fromkeys(("import torch as t; t.load(f)", "import torch; map(torch.load, files)"), "TID251"),
    **dict.fromkeys(("import torch; torch.load(f, weights_only=True)", "from torch import load as read"), "TID251"),
    **dict.fromkeys(("import torch; torch.save(x, f)", "from torch import hub", "import torch.package"), "TID251"),
    **dict.fromkeys(("import torch; torch.jit.load(f)", "import numpy as n; n.load(f)"), "TID251"),
    **dict.fromkeys(("import mlflow; mlflow.pytorch.load_model(u)", "import mlflow.sklearn"), "TID251"),
    "import pandas as pd; pd.read_pickle(f)": "S301",
    "eval(x)": "S307",
    "exec(x)": "S102",
    "import subprocess; subprocess.run(x, shell=True)": "S602",
    "import os; os.system(x)": "S605",
    "import os; os.popen(x)": "S605",
    "import subprocess; subprocess.getoutput(x)": "S605",
    "import tarfile; archive.extractall(folder)": "S202",
    "import requests; requests.get(x, verify=False, timeout=1)": "S501",
    "import tempfile; tempfile.mktemp()": "S306",
}
LAST_WORD = """
import atexit, os, runpy, sys
atexit.register(lambda: print("PICKLES", "mlflow" in sys.modules, os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"]))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("package", ["classifier", "stages", "benchmarks", "tests"])
def test_ruff_refuses_each_in_every_package(package):
    lines = "".join(f"def f{number}():\n    {code}\n" for number, code in enumerate(REFUSED))
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json"]
    command += ["--stdin-filename", str(ROOT / package / "example.py"), "-"]
    ended = subprocess.run(command, input=lines, cwd=ROOT, capture_output=True, text=True)
    found = {(problem["location"]["row"], problem["code"]) for problem in json.loads(ended.stdout)}
    missed = [code for number, (code, rule) in enumerate(REFUSED.items()) if (2 * number + 2, rule) not in found]
    assert not missed


def test_yaml_is_loaded_without_building_objects():
    """ruff does not know ruamel.yaml, whose `typ="unsafe"` builds any object; without `typ` it is as safe as "safe"."""
    calls = [
        (path.name, node)
        for package in ("classifier", "stages", "benchmarks", "tests")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "YAML"
    ]
    assert len(calls) > 10
    for name, call in calls:
        assert not call.args, name
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.pop("typ", "'safe'") == "'safe'", name
        assert options in ({}, {"pure": "True"}), name


def test_opening_the_store_turns_off_mlflows_unpickling(workspace, monkeypatch):
    """Whatever the environment says; every process that talks to MLflow calls open_store first."""
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    from classifier.tracking.connection import open_store

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    open_store()
    assert not MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()


@pytest.mark.parametrize(
    "command",
    [
        ["classifier.tracking.recorder"],
        ["classifier", "leaderboard"],
        ["classifier", "promote", "0" * 8],
        ["classifier", "compare", "0" * 8, "1" * 8],
    ],
)
def test_it_is_off_in_each_process_that_talks_to_mlflow(workspace, command):
    """A process started with the variable set to true prints its value at its end."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    if command == ["classifier.tracking.recorder"]:
        journal = new_journal("train")
        values = {"store": known_store(), "experiment": "classifier", "params": {}, "tags": {}}
        journal.append("begin", stage="train", key="1", weights=None, name=None, user="a", **values)
        journal.release()
        command = [*command, str(journal.folder)]
    ended = subprocess.run(
        [sys.executable, "-c", LAST_WORD, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.endswith("PICKLES True false\n"), ended.stdout + ended.stderr


def test_it_is_off_in_the_ui(tmp_path):
    """MLflow's server replaces the process that turned it off, and inherits the variable."""
    (tmp_path / ".dvc").mkdir()
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    variables["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "true"
    command = [sys.executable, "-m", "classifier", "ui", str(free_port())]
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL) as process:
        try:
            ui = psutil.Process(process.pid)
            while "mlflow" not in words_of(ui):
                assert process.poll() is None
                time.sleep(0.05)
            assert ui.environ()["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        finally:
            process.terminate()
