"""Rotations that fold into weights offline (QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406).

R1 rotates the residual stream, R2 each head of V, R4 the input of down_proj. With row vectors h' = h·R1, every linear
that reads the stream becomes (W ⊙ γ)·R1, every linear that writes it becomes R1ᵀ·W, and the norms' weights γ become 1.
The functions keep the dtype of their argument; weights are rotated in float64.
"""

import math
from functools import cache

import torch
from torch import Tensor

from ..kernels.quantizers import hadamard
from ..kernels.scheme import hadamard_block


def rotate_residual(x: Tensor) -> Tensor:
    """x · R1 over the last dimension.

    R1 = S·(C ⊗ H): random signs S, a Hadamard matrix H of the largest power of two in the size, and an orthonormal
    cosine matrix C of the odd rest, so that every channel is spread over all others for any size.
    """
    size = x.shape[-1]
    block = hadamard_block(size)
    x = hadamard(x * _signs(size).to(x.dtype), block)
    if block == size:
        return x
    mixed: Tensor = _cosines(size // block).T.to(x.dtype) @ x.reshape(*x.shape[:-1], -1, block)
    return mixed.flatten(-2)


def rotate_residual_outputs(weight: Tensor) -> Tensor:
    """R1ᵀ · W for a linear's weight [hidden, k] that writes the residual stream."""
    return rotate_residual(weight.T).T


def rotate_head_outputs(x: Tensor, head_dim: int, block: int) -> Tensor:
    """R2 on the outputs of v_proj: weight [Hkv · D, k] or bias [Hkv · D]."""
    return rotate_inputs(x, head_dim, block) if x.ndim == 1 else rotate_inputs(x.T, head_dim, block).T


def rotate_inputs(weight: Tensor, size: int, block: int) -> Tensor:
    """Hadamard blocks on the inputs of a linear, weight [n, k] with k a multiple of `size`."""
    return hadamard(weight.reshape(*weight.shape[:-1], -1, size), block).flatten(-2)


@cache
def _signs(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1


@cache
def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II matrix."""
    rows, columns = torch.arange(size).double()[:, None], torch.arange(size).double()
    matrix = torch.cos(math.pi / size * (columns + 0.5) * rows) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
