"""Instruction sets of the C++ kernels: which of them this CPU has, which one is in use; and the dot products.

On first use, the best instruction set that passes its self-test is selected. The environment variable FAQUANT_ISA
forces one. All instruction sets return the same bits.
"""

import platform
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _C

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    ByteVector: TypeAlias = NDArray[Any] | torch.Tensor

MAX_DOT_LENGTH: int = _C.MAX_DOT_LENGTH


def cpu_features() -> dict[str, bool]:
    """Features that the CPU has and the operating system enables, such as `avx512_vnni` on x86-64 and `asimddp` on
    AArch64. `amx_permitted`: whether this process may use AMX's tiles, for which this function asks the system."""
    return _C.cpu_features()


def cpu_name() -> str:
    """The CPU's brand string, or the name of its architecture if it has none."""
    return _C.cpu_brand() or platform.machine()


def available_isas() -> list[str]:
    """The instruction sets that this build and this CPU support, best first; the last is `portable`."""
    return _C.available_isas()


def selected_isa() -> str:
    """The instruction set in use: the one named by FAQUANT_ISA, else the best one that passes its self-test.

    Warns (RuntimeWarning) if a better one was skipped because its self-test failed.

    Raises:
        UsageError: FAQUANT_ISA names an instruction set that is unknown, that this CPU lacks, or that fails its
            self-test.
    """
    name = _C.selected_isa()
    if message := _C.selection_warning():
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return name


def self_test() -> dict[str, bool]:
    """For each available instruction set, whether all its kernels match a plain loop on extreme and random values."""
    return _C.self_test()


def dot_u8s8(a: "ByteVector", b: "ByteVector", isa: str | None = None) -> int:
    """∑ a[i]·b[i], exactly, for uint8 `a` [n] and int8 `b` [n], n ≤ MAX_DOT_LENGTH.

    `a` and `b` are contiguous NumPy arrays or torch CPU tensors. `isa` forces an instruction set for this call.

    Raises:
        TypeError: an operand is not an array on the CPU.
        ValueError: an operand has another dtype or shape, is not contiguous, or the lengths differ or exceed
            MAX_DOT_LENGTH.
        UsageError: `isa`, or FAQUANT_ISA without it, names an instruction set that cannot be used.
    """
    return _C.dot_u8s8(a, b, isa)


def dot_s8s8(a: "ByteVector", b: "ByteVector", isa: str | None = None) -> int:
    """As `dot_u8s8`, for int8 `a` [n] and int8 `b` [n]."""
    return _C.dot_s8s8(a, b, isa)
