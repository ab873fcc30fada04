"""Device selection, precision and determinism, and the environment that training results depend on."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from classifier.errors import UserError

# glibc's mallopt(3): when free memory returns to the kernel, and how many allocations are outside the heap.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1  # bytes


def pick_device(name: str, key: str) -> torch.device:
    """Select a device; `auto` prefers CUDA, then MPS, then the CPU.

    Raises UserError, which names `key`, if the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    elif not available[name]:
        there = ", ".join(["auto", *(device for device, is_there in available.items() if is_there)])
        raise UserError(f"{key}: {name!r} is not available on this machine; allowed here: {there}")
    return torch.device(name)


def set_precision(precision: str, device: torch.device) -> None:
    """Use full float32, or TF32 in CUDA's convolutions and matrix products if `precision` is `tf32`.

    PyTorch's default is TF32 in convolutions only. Raises UserError for `tf32` on other devices.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UserError(f"train.precision: 'tf32' needs cuda, the device is {device.type}; allowed: float32, bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def be_deterministic(device: torch.device, *, strictly: bool = True) -> None:
    """Use only deterministic kernels on CUDA. Unless `strictly`, PyTorch warns of operations that have none.

    The CPU kernels in use are deterministic anyway; requesting it would cost 1.5 s.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # torch.compile chooses no kernel by its speed
        # Filling takes a kernel for each new tensor, and no result depends on it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=not strictly)


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees in this process, for the next step.

    Otherwise glibc returns it to the kernel, which zeroes each page before reuse: over 1,000 pages per step for
    LeNet-5, 100,000 for MobileNetV2 on photos, a quarter of the loop's time. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_MAX, 0)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on the device; on a CPU, those of the machine or its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # control groups, version 2, as containers have them
        group = Path("/sys/fs/cgroup")
        most, taken = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, most - taken)
    return max(free, 0)


def environment(device: torch.device) -> dict[str, str]:
    """Everything besides params, data and code that the exact result of a training depends on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "device": describe(device),
        **{name: version(name) for name in ("torch", "numpy", "mlflow", "dvc")},
    }


def _cpu() -> str:
    """Name of the processor; from /proc/cpuinfo on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """The device for messages and the run's tags: `cpu`, or `cuda` and the GPU's name."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return device.type
