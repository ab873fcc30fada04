"""Portable arithmetic: the same bits on every x86-64 processor with AVX2.

PyTorch, oneDNN and MKL choose their kernels by processor, and each kernel has a different order of summation. Portable
arithmetic limits PyTorch and oneDNN to AVX2 and puts MKL into its compatible mode, the only one that works on the
processors of all vendors. The libraries read these variables once, when they first compute. There are no such settings
for other processors, such as ARM's: there, the bits are the same only on one machine.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from classifier.errors import UserError

CAPS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "MKL_CBWR": "COMPATIBLE",
}
BITS = 96  # of the fractions that `cosine` computes with
BRANCH, COMPATIBLE = 1, 3  # MKL_CBWR_BRANCH and MKL_CBWR_COMPATIBLE of mkl_types.h


def use(arithmetic: str) -> None:
    """Choose `portable` or `native` arithmetic for this process and its child processes.

    Call this before torch computes. Raises UserError if the processor has no AVX2, or if torch has already computed in
    another arithmetic.
    """
    if arithmetic == "native" or not is_x86():
        return
    if not _has_avx2():
        raise UserError(
            "portable arithmetic needs a processor with AVX2: set train.arithmetic and evaluate.arithmetic to native"
        )
    os.environ.update(CAPS)
    if "torch" in sys.modules:
        verify()


def verify() -> None:
    """Raise UserError unless this process computes in portable arithmetic. Imports torch."""
    if is_x86() and (found := instructions()) != "AVX2, compatible MKL":
        raise UserError(
            f"portable arithmetic is not in force, torch computes with {found}: start a new process, and call "
            "classifier.arithmetic.use('portable') before torch computes; native is allowed"
        )


def instructions() -> str:
    """Return torch's instruction set and MKL's mode: `AVX2, compatible MKL`."""
    import torch

    # Torch has no function for MKL's mode. A build without MKL has no mode.
    mode = getattr(ctypes.CDLL(torch._C.__file__), "mkl_serv_cbwr_get", lambda _: COMPATIBLE)(BRANCH)
    mkl = "compatible MKL" if mode == COMPATIBLE else f"MKL mode {mode}"
    return f"{torch.backends.cpu.get_cpu_capability()}, {mkl}"


def cosine(angle: float) -> float:
    """cos(angle), 0 <= angle <= pi, correctly rounded. The last bit of `math.cos` depends on the C library."""
    numerator, denominator = angle.as_integer_ratio()
    fixed = (numerator << BITS) // denominator
    square = fixed * fixed >> BITS
    term = total = 1 << BITS
    order = 0
    while abs(term) > 1:  # of the Taylor series
        order += 2
        term = -(term * square >> BITS) // (order * (order - 1))
        total += term
    return total / (1 << BITS)  # Python rounds the quotient of integers correctly


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _has_avx2() -> bool:
    """Whether the processor has AVX2. Linux lists its instructions; other systems that torch supports require AVX2."""
    with suppress(OSError):
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return True
