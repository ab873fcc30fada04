"""The device, its precision and determinism, and what the result of a training depends on."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

from classifier.errors import UserError

# glibc's mallopt(3): how much free memory at the heap's end goes back to the kernel, and what lies outside the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGEST_IN_HEAP = 2**31 - 1, 32 << 20  # bytes; glibc allows no more in the heap


def pick_device(name: str, key: str) -> torch.device:
    """`auto` takes CUDA, else Apple's MPS, else the CPU. Raises UserError, naming `key`, if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    elif not available[name]:
        there = ", ".join(["auto", *(device for device, is_there in available.items() if is_there)])
        raise UserError(f"{key}: {name!r} is not available on this machine; allowed here: {there}")
    return torch.device(name)


def set_precision(precision: str, device: torch.device) -> None:
    """Full float32, unless `tf32` asks CUDA for TF32 in convolutions and matrix products.

    PyTorch's own default is TF32 in convolutions alone. UserError where there is no TF32.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"train.precision: 'tf32' needs cuda, the device is {device.type}; allowed: float32, bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def be_deterministic(device: torch.device) -> None:
    """Use deterministic kernels only. Those used on a CPU are deterministic, and asking for it would take 1.5 s."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """Let this process keep the memory that a training step frees for the next step.

    glibc would return it to the kernel, which zeroes each page before it gives it out again: over a thousand pages a
    step, a quarter of the loop's time. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)


def environment(device: torch.device) -> dict[str, str]:
    """What the exact result of a training depends on besides params, data and code."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "device": describe(device),
        **{name: version(name) for name in ("torch", "numpy", "mlflow", "dvc")},
    }


def _cpu() -> str:
    """The processor's name, from Linux where `platform` does not know it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """For messages and the run's record: `cpu`, or the GPU's name."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return device.type
