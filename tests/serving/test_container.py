"""The Dockerfile's image holds all that serving needs and nothing else, tried without Docker.

The files that it copies serve a model in an empty folder, with the packages of requirements-serve.lock alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions

import pytest
import requests
from packaging.utils import canonicalize_name

from tests.samples import ROOT
from tests.serving.conftest import png
from tests.serving.test_pyfunc import PIXELS

LINES = (ROOT / "Dockerfile").read_text().splitlines()
ONLY = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Only(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FOREIGN:
            raise ModuleNotFoundError(f"{name} is not in requirements-serve.lock", name=name)

sys.meta_path.insert(0, Only())
sys.argv[0] = "classifier.serving"
runpy.run_module("classifier.serving", run_name="__main__", alter_sys=True)
"""


def locked() -> set[str]:
    text = (ROOT / "requirements-serve.lock").read_text()
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def foreign() -> set[str]:
    """The top-level modules of all installed packages that the lock does not name."""
    modules, known = {"classifier", "stages", "__pycache__"}, locked()
    of = {}
    for found in distributions():
        package = canonicalize_name(found.name)
        for line in (found.read_text("RECORD") or "").splitlines():  # `files` would take seconds
            path = line.partition(",")[0]
            if path.endswith((".py", ".so")) and not path.startswith(".."):
                of[path.partition("/")[0].removesuffix(".py")] = package
    return {module for module, package in of.items() if package not in known} - modules


@pytest.fixture
def image(served, tmp_path):
    """The files that the Dockerfile copies, and the model."""
    for line in LINES:
        if line.startswith("COPY"):
            *sources, place = line.split()[1:]
            for source in sources:
                origin = served.folder if source == "model.onnx" else ROOT
                paths = sorted(origin.glob(source))
                assert paths, source
                (tmp_path / place).mkdir(parents=True, exist_ok=True)
                for path in paths:
                    shutil.copy(path, tmp_path / place)
    return tmp_path


def test_the_image_has_neither_torch_nor_mlflow():
    assert {"torch", "mlflow", "pandas", "onnx"} & locked() == set()
    assert {"fastapi", "onnxruntime", "pillow", "uvicorn"} <= locked()


def test_what_the_image_holds_serves_the_model(image, served, model):
    entry = next(line for line in LINES if line.startswith("ENTRYPOINT"))
    assert entry == 'ENTRYPOINT ["python", "-m", "classifier.serving", "model.onnx", "--host", "0.0.0.0"]'
    program = ONLY.replace("FOREIGN", repr(foreign()))
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{program}", "model.onnx", "--port", "0"],
        cwd=image,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line + process.stderr.read()
        headers = {"Content-Type": "image/png"}
        answer = requests.post(f"{address[0]}/predict?top=1", data=png(PIXELS[0]), headers=headers, timeout=20)
        expected = PIXELS[0].copy()
        expected[:, [0, 1, -2, -1]] = expected[:, :, [0, 1, -2, -1]] = 0
        assert answer.json()["predictions"][0]["probability"] == model.probabilities(expected).max()
        assert requests.get(f"{address[0]}/docs", timeout=20).status_code == 200
        assert requests.get(f"{address[0]}/metrics", timeout=20).status_code == 200
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_docker_gets_only_what_it_copies():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for line in LINES:
        for source in line.split()[1:-1] if line.startswith("COPY") else []:
            assert any(source == rule[1:] or source.startswith(f"{rule[1:]}/") for rule in ignored if rule[0] == "!"), (
                source
            )
