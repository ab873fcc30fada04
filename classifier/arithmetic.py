"""Portable arithmetic: the same bits on every x86-64 processor with AVX2.

PyTorch, oneDNN and MKL choose their kernels by the processor, and each kernel sums in an order of its own. Portable
arithmetic caps PyTorch and oneDNN at AVX2 and puts MKL into its compatible mode, the only one that it honours on the
processors of all makers. The libraries read these variables once, when they first compute. Other processors, such as
ARM's, have no caps: there the bits are the same on one machine only.
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
    """Choose `portable` or `native` arithmetic for this process and for those that it starts.

    Call this before torch computes. Raises UserError when the processor has no AVX2, or when torch has computed in
    another arithmetic.
    """
    if arithmetic == "native" or not is_x86():
        return
    if not _has_avx2():
        raise UserError(
            "portable arithmetic needs a processor with AVX2, which this one is not: set train.arithmetic and "
            "evaluate.arithmetic to native"
        )
    os.environ.update(CAPS)
    if "torch" in sys.modules:
        verify()


def verify() -> None:
    """Raises UserError unless this process computes in portable arithmetic. Imports torch."""
    if is_x86() and (found := instructions()) != "AVX2, compatible MKL":
        raise UserError(
            f"portable arithmetic is not in force, torch computes with {found}: start a new process, and call "
            "classifier.arithmetic.use('portable') before torch computes; native is allowed"
        )


def instructions() -> str:
    """The instruction set that torch uses, and MKL's mode: `AVX2, compatible MKL`."""
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
    """Linux lists a processor's instructions. Other systems that torch supports run on AVX2 alone."""
    with suppress(OSError):
        return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return True
