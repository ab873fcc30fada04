"""Which device, and how precisely it computes."""

import pytest
import torch

from classifier.device import be_deterministic, describe, pick_device, set_precision

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
    assert pick_device("auto").type == picked


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine):
    machine("mps")
    with pytest.raises(ValueError, match="'cuda' is not available on this machine; allowed here: auto, mps, cpu"):
        pick_device("cuda")


@pytest.fixture
def flags():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_float32_is_float32_and_tf32_is_tf32_in_all_products(flags):
    for precision, expected in (("tf32", True), ("float32", False), ("bfloat16", False)):
        set_precision(precision, CUDA)
        assert flags() == (expected, expected)


def test_tf32_elsewhere_than_on_cuda_is_refused():
    with pytest.raises(ValueError, match="'tf32' needs cuda, the device is cpu"):
        set_precision("tf32", CPU)


def test_deterministic_kernels_are_asked_for_on_cuda(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    be_deterministic(CPU)
    be_deterministic(CUDA)
    assert asked == [True]


def test_description_names_the_threads():
    assert describe(CPU) == f"cpu, {torch.get_num_threads()} threads"
