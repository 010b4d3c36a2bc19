"""int8 weights for linears with inputs quantized per token: rounded to nearest, or with error compensation."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels.quantizers import hadamard
from ..kernels.scheme import hadamard_block

GRAM_BLOCK = 2048
"""Number of inputs whose correlations are used together. It bounds memory and time for wide linears."""

_PANEL = 128
_DAMPING = 0.01
_SHRINKAGE = 0.5
"""Multiplied by inputs/tokens: correlations of the inputs over few tokens are mostly noise."""


@dataclass(frozen=True)
class QuantizedWeight:
    """weight ≈ int8 [n, k] · scale [n, 1] (float32)."""

    weight: Tensor
    scale: Tensor


def round_to_nearest(weight: Tensor) -> QuantizedWeight:
    """Round a weight [n, k] to the nearest of 255 steps, symmetric, one scale per output channel."""
    scale = _scale(weight)
    return QuantizedWeight((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)


class Gram:
    """XᵀX of a linear's inputs, in diagonal blocks [blocks, b, b], and the greatest magnitude of each input, peaks
    [k]."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.block = size if size <= GRAM_BLOCK else hadamard_block(size, GRAM_BLOCK)
        self.blocks = torch.zeros(size // self.block, self.block, self.block)
        self.peaks = torch.zeros(size)
        self.tokens = 0

    @classmethod
    def of(cls, blocks: Tensor, peaks: Tensor, tokens: int) -> "Gram":
        """A Gram matrix of these inputs."""
        gram = cls(len(peaks))
        gram.blocks, gram.peaks, gram.tokens = blocks, peaks, tokens
        return gram

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, k]."""
        parts = x.float().view(x.shape[0], -1, self.block).transpose(0, 1)
        self.blocks += parts.mT @ parts
        self.peaks = torch.maximum(self.peaks, x.abs().amax(0).float())
        self.tokens += x.shape[0]

    def square_sums(self) -> Tensor:
        """Σx² of each input, float64 [k]."""
        return self.blocks.diagonal(dim1=1, dim2=2).flatten().double()

    def transformed(self, equalizer: Tensor | None, rotation: int) -> "TransformedGram":
        """The blocks for inputs divided by `equalizer` [k] and then rotated in Hadamard blocks of size `rotation` (0:
        not), a divisor of the block size."""
        blocks = self.blocks.double()
        if equalizer is not None:
            e = equalizer.view(-1, self.block)
            blocks = blocks / e[:, :, None] / e[:, None, :]
        if rotation:
            blocks = hadamard(hadamard(blocks, rotation).mT.contiguous(), rotation)
        return TransformedGram(blocks, self.tokens)


@dataclass(frozen=True)
class TransformedGram:
    """Diagonal blocks [blocks, b, b], float64, of the Gram matrix of a linear's transformed inputs over `tokens`
    tokens."""

    blocks: Tensor
    tokens: int

    @cached_property
    def factors(self) -> list[Tensor]:
        """Upper Cholesky factors [b, b] of the blocks' inverses, damped, float32."""
        damping = _DAMPING + _SHRINKAGE * self.blocks.shape[1] / max(self.tokens, 1)
        return [_inverse_factor(block, damping) for block in self.blocks]


def balance(inputs: Tensor, weights: Tensor) -> Tensor:
    """√(inputs/weights) for each channel [k], both limited from below relative to their largest, so that no channel
    gets all the precision. With sums of squares, its root e minimizes Σx²/e² · Σw²e² (Cauchy-Schwarz), the cost of
    rounding x ⊘ e and W ⊙ e if a rotation follows. With greatest magnitudes and no rotation, it is SmoothQuant's factor
    (arXiv 2211.10438) with α = ½."""
    inputs, weights = (x.clamp_min(1e-8 * x.amax().clamp_min(1e-30)) for x in (inputs, weights))
    return (inputs / weights).sqrt()


def round_with_compensation(weight: Tensor, gram: TransformedGram) -> QuantizedWeight:
    """Round a weight [n, k] input by input and compensate each error in the remaining inputs (GPTQ, arXiv 2210.17323,
    algorithm 1), to minimize the change of the outputs for inputs like those of `gram`."""
    scale = _scale(weight)
    steps = (weight / scale).T.float().contiguous()
    out = torch.empty(steps.shape, dtype=torch.int8)
    size = gram.blocks.shape[1]
    for index, factor in enumerate(gram.factors):
        rows = slice(index * size, (index + 1) * size)
        out[rows] = _compensate(steps[rows], factor)
    return QuantizedWeight(out.T.contiguous(), scale)


def _scale(weight: Tensor) -> Tensor:
    return (weight.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127).float()


def _inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor, float32, of the inverse of the Gram matrix with `damping` times its mean diagonal."""
    if not gram.isfinite().all():
        raise CheckpointError("Calibration overflowed: a linear's inputs are not finite. Are the weights damaged?")
    diagonal = gram.diagonal()
    # Weights of inputs that were always 0 are undetermined; the damping decides.
    gram = gram + torch.eye(len(gram)) * (damping * diagonal.mean()).clamp_min(1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _compensate(steps: Tensor, factor: Tensor) -> Tensor:
    """Integers [k, n] for weights [k, n] in units of their scales; the weights are overwritten."""
    out = torch.empty(steps.shape, dtype=torch.int8)
    for first in range(0, len(steps), _PANEL):
        last = min(first + _PANEL, len(steps))
        errors = torch.empty(last - first, steps.shape[1])
        for i in range(first, last):
            rounded = steps[i].round().clamp_(-127, 127)
            out[i] = rounded.to(torch.int8)
            errors[i - first] = (steps[i] - rounded) / factor[i, i]
            steps[i + 1 : last].addr_(factor[i, i + 1 : last], errors[i - first], alpha=-1)
        steps[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)
    return out
