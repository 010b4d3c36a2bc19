"""Arrays of either library. The CPU kernels accept NumPy arrays and torch tensors and return the type they received:
serving uses NumPy only, calibration and evaluation use torch. NumPy lacks bfloat16, so it is stored as uint16.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _C
from .threads import ALL_THREADS

Array: TypeAlias = Any
"""A NumPy array or a torch tensor."""
Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Stored: TypeAlias = npt.NDArray[Any]
"""An array as stored in a file; uint16 is bfloat16."""


def empty(like: Array, *shape: int) -> Array:
    """Uninitialized float32 [shape] from the same library as `like`."""
    return like.new_empty(shape) if hasattr(like, "new_empty") else np.empty(shape, np.float32)


def contiguous(x: Array) -> Array:
    """x itself if it is contiguous, else a contiguous copy."""
    return x.contiguous() if hasattr(x, "contiguous") else np.ascontiguousarray(x)


def concatenate(parts: Sequence[Array]) -> Array:
    """Arrays of one library, one after another."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def to_numpy(x: Array) -> Stored:
    """x as a NumPy array, copied from the GPU if it lies there."""
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)


def widen(x: Stored) -> Floats:
    """Stored floats converted exactly to float32; x itself if it is float32 already."""
    if x.dtype not in (np.uint16, np.float16):
        return x.astype(np.float32, copy=False)
    out = np.empty(x.shape, np.float32)
    convert = _C.widen_bfloat16 if x.dtype == np.uint16 else _C.widen_float16
    convert(np.ascontiguousarray(x).reshape(-1).view(np.uint16), out.reshape(-1), ALL_THREADS)
    return out


def is_finite(x: Stored) -> bool:
    """Whether no value is NaN or infinite."""
    # In parts: the check needs several times the memory of its operand.
    for start in range(0, x.size, 1 << 20):
        part = x.reshape(-1)[start : start + (1 << 20)]
        if x.dtype == np.uint16:
            if ((part & 0x7F80) == 0x7F80).any():
                return False
        elif not np.isfinite(part).all():
            return False
    return True
