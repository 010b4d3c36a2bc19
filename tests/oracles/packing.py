"""The packed matrices of csrc/isa/kernels.h, element by element as that comment describes them."""

from functools import cache

import torch
from torch import Tensor

from faquant.kernels.pages import Int8Pages

PANEL, TILE = 64, 128


@cache
def order(rows: int, columns: int) -> Tensor:
    """Which element of a matrix [rows, columns] stands where: panels of columns, in each four rows after four, and of
    those column after column."""
    numbers = torch.arange(rows * columns).view(rows, columns)
    packed = [
        numbers[row : row + 4, column]
        for panel in range(0, columns, PANEL)
        for row in range(0, rows, 4)
        for column in range(panel, min(panel + PANEL, columns))
    ]
    return torch.cat(packed)


def pack(matrix: Tensor) -> Tensor:
    """A matrix [rows, columns] packed."""
    return matrix.flatten()[order(*matrix.shape)]


def store(
    pages: Int8Pages, block_table: Tensor, k8: Tensor, v8: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> None:
    """Put int8 k8 and v8 [length, Hkv, D] and scales [length, Hkv] into the pages of one sequence; what lies between
    and behind them keeps its bytes."""
    length, heads, dim = k8.shape
    padded = pages.k.shape[-1] // TILE
    for start in range(0, length, TILE):
        page, tile = block_table[start // pages.page_size], start % pages.page_size // TILE
        some = slice(start, min(start + TILE, length))
        count = some.stop - some.start
        for head in range(heads):
            for stored, values in ((pages.k, (k8[some, head].view(torch.uint8) ^ 0x80)), (pages.v, v8[some, head])):
                is_k = stored is pages.k
                known = torch.full((TILE, padded), 0x7F, dtype=stored.dtype)
                known[:count, :dim] = values
                stored[page, head, tile] = pack(known.T if is_k else known)
            for scales, values in ((pages.k_scale, k_scale), (pages.v_scale, v_scale)):
                if scales is not None and values is not None:
                    scales[page, head, tile * TILE : tile * TILE + count] = values[some, head]
