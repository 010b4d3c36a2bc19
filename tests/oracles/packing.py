"""The packed matrices of csrc/isa/kernels.h, element by element, as described there."""

from functools import cache

import numpy as np

from faquant.kernels.arrays import Array, Integers, Stored
from faquant.kernels.pages import Int8Pages

PANEL, TILE = 64, 128


@cache
def order(rows: int, columns: int) -> Integers:
    """The order of the elements of a packed matrix [rows, columns]: panels of columns; in each, groups of four rows; in
    each group, column after column."""
    numbers = np.arange(rows * columns).reshape(rows, columns)
    packed = [
        numbers[row : row + 4, column]
        for panel in range(0, columns, PANEL)
        for row in range(0, rows, 4)
        for column in range(panel, min(panel + PANEL, columns))
    ]
    return np.concatenate(packed)


def pack(matrix: Array) -> Stored:
    """A matrix [rows, columns] packed."""
    return np.asarray(matrix).reshape(-1)[order(*matrix.shape)]


def store(
    pages: Int8Pages, block_table: Array, k8: Array, v8: Array, k_scale: Array | None, v_scale: Array | None
) -> None:
    """Write int8 k8 and v8 [length, Hkv, D] and scales [length, Hkv] into the pages of one sequence; other bytes are
    unchanged."""
    k8, v8 = np.asarray(k8), np.asarray(v8)
    length, heads, dim = k8.shape
    padded = pages.k.shape[-1] // TILE
    for start in range(0, length, TILE):
        page, tile = block_table[start // pages.page_size], start % pages.page_size // TILE
        some = slice(start, min(start + TILE, length))
        count = some.stop - some.start
        for head in range(heads):
            for stored, values in ((pages.k, k8[some, head].view(np.uint8) ^ 0x80), (pages.v, v8[some, head])):
                is_k = stored is pages.k
                known = np.full((TILE, padded), 0x7F, stored.dtype)
                known[:count, :dim] = values
                stored[page, head, tile] = pack(known.T if is_k else known)
            for scales, values in ((pages.k_scale, k_scale), (pages.v_scale, v_scale)):
                if scales is not None and values is not None:
                    scales[page, head, tile * TILE : tile * TILE + count] = values[some, head]
