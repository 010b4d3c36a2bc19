"""int8 weights for linears with inputs quantized per token: rounded to nearest, or with error compensation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..kernels import _C, parallel
from ..kernels.quantizers import hadamard
from ..kernels.scheme import hadamard_block

GRAM_BLOCK = 2048
"""Number of inputs whose correlations are used together. It bounds memory and time for wide linears."""

_TILE = 128
"""Rows of a Gram matrix that one thread computes at a time."""
_OUTPUTS = 256
"""Outputs of a linear that one thread rounds at a time."""
_PANEL = 128
_AT_ONCE = 8
"""Diagonal blocks that are factored at once: each needs several times its 32 MiB of float64 meanwhile."""
_DAMPING = 0.01
_SHRINKAGE = 0.5
"""Multiplied by inputs/tokens: correlations of the inputs over few tokens are mostly noise."""


@dataclass(frozen=True)
class QuantizedWeight:
    """weight ≈ int8 [n, k] · scale [n, 1] (float32)."""

    weight: Tensor
    scale: Tensor


def by_outputs(outputs: slice, round_some: Callable[[slice], QuantizedWeight]) -> QuantizedWeight:
    """The results of `round_some` for a few of these outputs at a time, several at once, one after another."""
    found = parallel.map_in_order(round_some, parallel.blocks(outputs.stop, _OUTPUTS, outputs.start))
    return QuantizedWeight(torch.cat([some.weight for some in found]), torch.cat([some.scale for some in found]))


def round_to_nearest(weight: Tensor) -> QuantizedWeight:
    """Round a weight [n, k] to the nearest of 255 steps, symmetric, one scale per output channel."""
    scale = _scale(weight)
    return QuantizedWeight((weight / scale).round().clamp(-127, 127).to(torch.int8), scale)


class Gram:
    """XᵀX of a linear's inputs, in diagonal blocks, of which only the lower triangles are computed: `lower` [blocks, b,
    b]; and the greatest magnitude of each input relative to the root mean square of its token, `peaks` [k]."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.block = size if size <= GRAM_BLOCK else hadamard_block(size, GRAM_BLOCK)
        self.lower = torch.zeros(size // self.block, self.block, self.block)
        self.peaks = torch.zeros(size)
        self.tokens = 0

    @classmethod
    def of(cls, lower: Tensor, peaks: Tensor, tokens: int) -> "Gram":
        """A Gram matrix of these inputs."""
        gram = cls(len(peaks))
        gram.lower, gram.peaks, gram.tokens = lower, peaks, tokens
        return gram

    def add(self, x: Tensor) -> None:
        """Add inputs [tokens, k]."""
        x = x.float()
        sizes = x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)

        def add_tile(tile: tuple[int, slice]) -> None:
            number, rows = tile
            part = x[:, number * self.block : (number + 1) * self.block]
            some = part[:, rows]
            self.lower[number, rows, : rows.stop].addmm_(some.T, part[:, : rows.stop])
            peaks = self.peaks[number * self.block :][rows]
            torch.maximum(peaks, (some.abs() / sizes).amax(0), out=peaks)

        # The widest tiles first, so that no thread waits long for the last one.
        tiles = parallel.blocks(self.block, _TILE)[::-1]
        parallel.map_in_order(add_tile, [(number, rows) for rows in tiles for number in range(len(self.lower))])
        self.tokens += len(x)

    def square_sums(self) -> Tensor:
        """Σx² of each input, float64 [k]."""
        return self.lower.diagonal(dim1=1, dim2=2).flatten().double()

    def transformed(self, number: int, equalizer: Tensor | None, rotation: int) -> Tensor:
        """Block `number`, float64 [b, b], for inputs divided by `equalizer` [k] and then rotated in Hadamard blocks of
        size `rotation` (0: not), a divisor of the block size."""
        block = self.lower[number].double()
        block = block.tril() + block.tril(-1).T
        if equalizer is not None:
            e = equalizer.view(-1, self.block)[number]
            block = block / e[:, None] / e
        for _ in range(2 if rotation else 0):
            # A few rows at a time, to stay in the CPU cache.
            block = torch.cat([hadamard(rows, rotation) for rows in torch.split(block, 64)]).T
        return block


@dataclass(frozen=True)
class TransformedGram:
    """The Gram matrix of inputs that are divided by `equalizer` [k] (None: not) and then rotated in Hadamard blocks of
    size `rotation` (0: not). Its blocks are computed when they are needed."""

    gram: Gram
    equalizer: Tensor | None = None
    rotation: int = 0


def compensations(inputs: Sequence[TransformedGram]) -> list[list[Tensor]]:
    """For each of these and each diagonal block, how errors are compensated, float32 C [b, b]: with the errors e_i =
    weight − rounded weight of the inputs i < j, the outputs change least if Σ e_i · C[j, i] is added to weight j.

    The damped Gram matrix is H = R·Rᵀ, R upper triangular, and the outputs change by ‖e·R‖². After e_i for i < j, the
    rest of it is zero with e_j = −Σ_{i<j} e_i · R[i, j]/R[j, j] for each further j. GPTQ (arXiv 2210.17323) takes the
    same steps with a factor of H⁻¹; without the inverse it is less work (arXiv 2507.18553).

    Raises:
        CheckpointError: an input was not finite.
    """

    def of(item: tuple[TransformedGram, int]) -> Tensor:
        seen, number = item
        block = seen.gram.transformed(number, seen.equalizer, seen.rotation)
        return _compensation(block, _DAMPING + _SHRINKAGE * len(block) / max(seen.gram.tokens, 1))

    blocks = [(seen, number) for seen in inputs for number in range(len(seen.gram.lower))]
    found = iter(parallel.map_in_order(of, blocks, _AT_ONCE))
    return [[next(found) for _ in seen.gram.lower] for seen in inputs]


def balance(inputs: Tensor, weights: Tensor) -> Tensor:
    """√(inputs/weights) for each channel [k], both limited from below relative to their largest, so that no channel
    gets all the precision. With sums of squares, its root e minimizes Σx²/e² · Σw²e² (Cauchy-Schwarz), the cost of
    rounding x ⊘ e and W ⊙ e if a rotation follows. Without one, the inputs' peaks take the place of their sizes, as in
    SmoothQuant (arXiv 2211.10438) with α = ½; relative to their tokens, since each token has its own scale."""
    inputs, weights = (x.clamp_min(1e-8 * x.amax().clamp_min(1e-30)) for x in (inputs, weights))
    return (inputs / weights).sqrt()


def round_with_compensation(weight: Tensor, compensation: Sequence[Tensor]) -> QuantizedWeight:
    """Round a weight [n, k] input by input and compensate each error in the remaining inputs of its block, to minimize
    the change of the outputs for inputs like those that `compensation` was made from."""
    scale = _scale(weight)
    steps = (weight / scale).float()
    out = torch.empty(steps.shape, dtype=torch.int8)
    first = 0
    for block in compensation:
        inputs = slice(first, first + len(block))
        out[:, inputs] = _compensate(steps[:, inputs], block)
        first = inputs.stop
    return QuantizedWeight(out, scale)


def _scale(weight: Tensor) -> Tensor:
    return (weight.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127).float()


def _compensation(gram: Tensor, damping: float) -> Tensor:
    """C [b, b], float32, with `damping` times the mean diagonal added to the Gram matrix."""
    if not gram.isfinite().all():
        raise CheckpointError("Calibration overflowed: a linear's inputs are not finite. Are the weights damaged?")
    # Weights of inputs that were always 0 are undetermined; the damping decides.
    gram = gram + torch.eye(len(gram), dtype=gram.dtype) * (damping * gram.diagonal().mean()).clamp_min(1e-12)
    # An upper factor is the lower one of the matrix with its inputs in reverse order.
    upper = torch.linalg.cholesky(gram.flip(0, 1)).flip(0, 1)
    return (upper / upper.diagonal()).T.float().contiguous()


def _compensate(steps: Tensor, compensation: Tensor) -> Tensor:
    """Integers [n, b] for weights [n, b] in units of their scales."""
    out = torch.empty(steps.shape, dtype=torch.int8)
    errors = torch.empty_like(steps)
    for panel in parallel.blocks(steps.shape[1], _PANEL):
        exact = steps[:, panel].contiguous()
        before = slice(panel.start)
        targets = torch.addmm(exact, errors[:, before], compensation[panel, before].T)
        rounded, left = torch.empty(exact.shape, dtype=torch.int8), torch.empty_like(exact)
        _C.compensate(targets, exact, compensation[panel, panel].contiguous(), rounded, left)
        out[:, panel], errors[:, panel] = rounded, left
    return out
