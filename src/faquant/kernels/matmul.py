"""The int8 matrix product in use: oneDNN through torch where it proves exact on this machine, else the reference."""

import warnings
from functools import cache

import torch
from torch import Tensor

from . import quantizers


def int8_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Exact integer product x · weightᵀ: int8 [m, k] and int8 [n, k] give int32 [m, n]."""
    # For k = 1 torch 2.13 leaves its result uninitialised, without an error.
    if x.shape[1] > 1 and matmul_backend() == "onednn":
        return torch._int_mm(x, weight.t())
    return quantizers.int8_matmul(x, weight)


@cache
def matmul_backend() -> str:
    """`onednn`, or `reference` where torch's product is missing or wrong (int16 saturation without VNNI)."""
    try:
        exact = _is_exact()
    except (AttributeError, RuntimeError):
        exact = False
    if not exact:
        warnings.warn(
            "torch's int8 matrix product is not exact on this machine; the exact but slower reference is used.",
            RuntimeWarning,
            stacklevel=2,
        )
    return "onednn" if exact else "reference"


def _is_exact() -> bool:
    # Both M = 1 and a larger M, since they take different kernels; extremes, since saturation hides in the middle.
    generator = torch.Generator().manual_seed(0)
    for rows, columns, depth in ((1, 64, 576), (33, 48, 1000)):
        x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8, generator=generator)
        weight = torch.randint(-128, 128, (columns, depth), dtype=torch.int8, generator=generator)
        x[0], weight[0], weight[1] = -128, -128, 127
        if not torch.equal(torch._int_mm(x, weight.t()), quantizers.int8_matmul(x, weight)):
            return False
    return True
