"""Arguments that the kernels of decode and prefill share."""

from typing import Any

import triton
from torch import Tensor

from ..scheme import TILE
from .arithmetic import hadamard_factor
from .cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables


def padded(dim: int) -> int:
    """The size of blocks with a head's channels: a power of two that the matrix instructions take."""
    return max(32, int(triton.next_power_of_2(dim)))


def operands(
    queries: MappedQueries, cache: Int8Cache, tables: SchemeTables, spans: DeviceSpans
) -> tuple[Tensor | None, ...]:
    """Tensors, None for what the scheme does not have. Without centers per map all biases are 0, which changes no bit:
    a score of -0 has the same exponential as one of 0."""
    biased = queries.values.shape[0] > 1 and tables.k_center is not None
    return (
        queries.values,
        queries.scale,
        queries.bias if biased else None,
        cache.k,
        cache.v,
        cache.k_scale,
        cache.v_scale,
        tables.v_scale,
        tables.v_offset,
        spans.positions,
        spans.sequences,
        spans.block_tables,
    )


def constants(queries: MappedQueries, cache: Int8Cache, tables: SchemeTables) -> dict[str, Any]:
    """Constants of compilation."""
    return {
        "HEADS": tables.heads,
        "KV_HEADS": tables.kv_heads,
        "D": tables.dim,
        "PADDED": padded(tables.dim),
        "LEVELS": tables.p_levels,
        "QUANTIZED_SUM": tables.quantized_sum,
        "TILES_IN_PAGE": cache.tiles_in_page,
        "PAGE_STRIDE": cache.page_stride,
        "MAP_TILES": tables.map_block // TILE if queries.values.shape[0] > 1 else 0,
    }


def rotation(tables: SchemeTables) -> dict[str, Any]:
    """Constants for rotating V back."""
    block = tables.v_rotation_block
    return {"ROTATION": block, "FACTOR": hadamard_factor(block)}
