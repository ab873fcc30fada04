"""Which device, and how precisely it computes."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch

from classifier.device import be_deterministic, describe, environment, free_memory, pick_device, set_precision
from classifier.project.files import sha256_of
from tests.samples import ROOT, file_params, train_params, write_digits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine with these devices beside its CPU."""

    def have(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    return have


@pytest.mark.parametrize(
    ("there", "picked"), [((), "cpu"), (("mps",), "mps"), (("cuda",), "cuda"), (("cuda", "mps"), "cuda")]
)
def test_auto_takes_cuda_else_mps_else_cpu(machine, there, picked):
    machine(*there)
    assert pick_device("auto", "train.device").type == picked


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine):
    machine("mps")
    expected = "evaluate.device: 'cuda' is not available on this machine; allowed here: auto, mps, cpu"
    with pytest.raises(ValueError, match=expected):
        pick_device("cuda", "evaluate.device")


@pytest.fixture
def flags():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_float32_is_float32_and_tf32_is_tf32_in_all_products(flags):
    for precision, expected in (("tf32", True), ("float32", False), ("bfloat16", False)):
        set_precision(precision, CUDA)
        assert flags() == (expected, expected)


@pytest.mark.gpu
def test_tf32_rounds_what_it_multiplies_and_float32_does_not(cuda, flags):
    if torch.cuda.get_device_capability(cuda) < (8, 0):
        pytest.skip("a GPU of before TF32")
    fine = torch.full((256, 256), 1 + 2**-12, device=cuda)  # TF32 has 10 bits behind the point
    for precision, expected in (("tf32", 1), ("float32", 1 + 2**-12)):
        set_precision(precision, cuda)
        assert torch.equal(fine @ torch.eye(256, device=cuda), torch.full_like(fine, expected))


@pytest.mark.slow
def test_train_and_evaluate_write_the_same_files_twice(tmp_path, device):
    write_digits(tmp_path / "data")
    values = file_params().model_dump()
    values["train"] = train_params(device=device.type, shift=1, rotation=5.0, epochs=2).model_dump()
    values["evaluate"]["device"] = device.type
    (tmp_path / "params.yaml").write_text(json.dumps(values))  # JSON is YAML
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *sys.path))), "DVC_ROOT": str(tmp_path)}
    found = []
    for name in ("first", "second"):
        train, evaluate = ("model", "train"), ("model", "train", "evaluate")
        for stage, inputs, folders in (("train", ["data", "pretrained"], train), ("evaluate", ["data"], evaluate)):
            paths = ["params.yaml", *inputs, *(f"{name}/{folder}" for folder in folders)]
            subprocess.run([sys.executable, "-m", f"stages.{stage}", *paths], cwd=tmp_path, env=environment, check=True)
        written = tmp_path / name
        found.append({path.relative_to(written): sha256_of(path) for path in written.rglob("*") if path.is_file()})
    assert found[0] == found[1]
    assert {Path("model/weights.safetensors"), Path("evaluate/predictions.parquet")} <= found[0].keys()


def test_tf32_elsewhere_than_on_cuda_is_refused():
    with pytest.raises(ValueError, match="'tf32' needs cuda, the device is cpu"):
        set_precision("tf32", CPU)


def test_deterministic_kernels_are_asked_for_on_cuda(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append((mode, warn_only)))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    be_deterministic(CPU)
    be_deterministic(CUDA)
    be_deterministic(CUDA, strictly=False)
    assert asked == [(True, False), (True, True)]


def test_the_environment_holds_all_that_bits_depend_on():
    """Versions above all: a checkpoint of another torch or numpy is that of another training."""
    found = environment(CPU)
    assert found.pop("cpu")
    assert found == {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "device": describe(CPU),
        **{name: version(name) for name in ("torch", "numpy", "mlflow", "dvc")},
    }


STEPS = """
import sys
from resource import RUSAGE_SELF, getrusage
from statistics import median
import torch
from classifier.device import keep_freed_memory
from classifier.networks.model import Classifier, LeNet5
from classifier.training.engine import Engine
from classifier.training.mixing import Targets
from tests.samples import digits_split, train_params

if sys.argv[1] == "kept":
    keep_freed_memory()
engine = Engine(Classifier(LeNet5(1, 10), [0.5], [1.0]), train_params(), torch.device("cpu"))
split = digits_split(100)
for times, steps in ((1, 20), (25, 15)):  # tensors of the larger batch take 60 MiB
    images, labels = (torch.from_numpy(of).repeat_interleave(times, 0) for of in (split.images, split.labels))
    faults = []
    for _ in range(steps):
        before = getrusage(RUSAGE_SELF).ru_minflt
        engine.step([(0, engine.classifier.normalize(images), Targets(labels))], len(labels), 0.001)
        faults.append(getrusage(RUSAGE_SELF).ru_minflt - before)
    print(median(faults))  # the heap grows in some of the first steps
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone gives memory back")
def test_a_step_uses_the_memory_of_the_one_before():
    kept, given_back = (
        subprocess.run([sys.executable, "-c", STEPS, memory], check=True, capture_output=True, text=True).stdout
        for memory in ("kept", "given_back")
    )
    for least, most in zip(map(float, kept.split()), map(float, given_back.split()), strict=True):
        assert least < 50
        assert most > 10 * least


def test_free_memory_is_at_most_that_of_the_container(monkeypatch):
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().available * 1.5
    limits = {"memory.max": "5000\n", "memory.current": "2000\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: limits[self.name])
    assert free_memory(torch.device("cpu")) == 3000
    limits["memory.max"] = "max\n"
    assert free_memory(torch.device("cpu")) > 3000
