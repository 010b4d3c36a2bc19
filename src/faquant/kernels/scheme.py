"""AttentionScheme: how one layer's q, k and v become int8, and P an integer."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import _C
from .arrays import Array, Floats

TILE: int = _C.TILE
"""Keys that share one scale of P. Tiles start at multiples of it, and cache pages hold whole tiles."""

SPLIT = 2048
"""Keys whose tiles are merged first; the results are then merged in ascending order. It determines the bits of the
result, and is a multiple of MAP_BLOCK."""

MAP_BLOCK = 1024
"""Keys that share one map if the map depends on the position: block b starts at position b · MAP_BLOCK; a multiple of
TILE."""

P_LEVELS = {"int16": 32767, "int8x2": 127 * 256 + 127, "uint8": 255, "int8": 127}
"""For each integer type of P in recipes: the integer that represents the largest P of a tile. `int8x2` is the largest
that two signed bytes represent, of which units that multiply only signed bytes make two products instead of three."""

MAX_INPUT_BLOCK = 512
"""The largest Hadamard block on the input of a linear. It must divide the inputs of one rank under tensor
parallelism."""

MAX_HEAD_DIM: int = _C.MAX_HEAD_DIM
PADDING: int = _C.PADDING
"""The cache pads the channels of a head to a multiple of this; the head_dim of common models is one."""


def hadamard_block(size: int, limit: int = 1 << 30) -> int:
    """The Hadamard block for `size` channels: the largest power of two that divides `size` and is at most `limit`."""
    return min(size & -size, 1 << (limit.bit_length() - 1))


@dataclass(frozen=True)
class AttentionScheme:
    """The tables of one layer (docs/format.md): float32 arrays, from NumPy if read from a file, from torch if
    calibrated.

    A scale of None is dynamic: for k and v one float16 per token and head, stored in the cache page; for q one float32
    per token and head. A static scale has the shape [heads, 1] (per head) or [heads, D] (per channel).
    Zero points are in steps and are added before rounding: x8 = clamp(rint(x / scale + offset), -128, 127).

    Attributes:
        k_center, k_equalizer: in K's units after RoPE, or None (0 and 1): [Hkv, D] for all positions, or
            [blocks, Hkv, D] for each block of `map_block` positions; the last block also covers all later positions.
        rotation_block: size of the Hadamard blocks on q and k after RoPE; 0: no rotation.
        rotation_sign: [D] of ±1, applied before the Hadamard transform; None: all +1.
        v_rotation_block: size of the Hadamard blocks on V and on the output, unless they are folded into v_proj and
            o_proj; 0: no rotation at run time.
        p_levels: the integer that represents the largest P of a tile, one of P_LEVELS.
        p_float16: whether P is rounded to float16 before it is quantized, as in MindIE's kernel; only with 127 levels.
            It can change a P close to a half by one step.
        quantized_sum: whether softmax divides by the sum of the quantized P; needs a static V scale.
        map_block: positions that share a map, a multiple of TILE; less than MAP_BLOCK only for measurements.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    k_center: Array | None = None
    k_equalizer: Array | None = None
    rotation_block: int = 0
    rotation_sign: Array | None = None
    v_rotation_block: int = 0
    q_scale: Array | None = None
    k_scale: Array | None = None
    k_offset: Array | None = None
    v_scale: Array | None = None
    v_offset: Array | None = None
    p_levels: int = P_LEVELS["int8x2"]
    p_float16: bool = False
    quantized_sum: bool = False
    map_block: int = MAP_BLOCK

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} key/value heads")
        block = self.rotation_block
        if block and (block & (block - 1) or self.head_dim % block):
            raise ValueError(f"a rotation block must be a power of two that divides {self.head_dim}, not {block}")
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"the kernels support heads of up to {MAX_HEAD_DIM} channels, not {self.head_dim}")
        if self.p_levels not in P_LEVELS.values():
            raise ValueError(f"p_levels must be one of {sorted(P_LEVELS.values())}, not {self.p_levels}")
        if self.p_float16 != (self.p_levels == 127):
            raise ValueError("p_float16 and p_levels 127 need each other: the kernels have no other combination")
        if self.quantized_sum and self.v_scale is None:
            raise ValueError("quantized_sum needs a static scale of V: with a scale per token, P includes it")
        for name in ("k", "v"):
            if getattr(self, f"{name}_offset") is not None and getattr(self, f"{name}_scale") is None:
                raise ValueError(f"{name}_offset counts steps of {name}_scale, which is dynamic")
        for name in ("q_scale", "k_scale", "k_offset", "v_scale", "v_offset"):
            self._check_shape(name)
        maps = [table for table in (self.k_center, self.k_equalizer) if table is not None]
        shape = (self.num_kv_heads, self.head_dim)
        if any(table.shape[-2:] != shape or table.ndim > 3 or table.shape != maps[0].shape for table in maps):
            raise ValueError(
                f"k_center and k_equalizer must both be {list(shape)}, or [blocks, {shape[0]}, {shape[1]}], not "
                f"{' and '.join(str(list(table.shape)) for table in maps)}"
            )

    def _check_shape(self, name: str) -> None:
        table: Array | None = getattr(self, name)
        heads = self.num_heads if name == "q_scale" else self.num_kv_heads
        if table is not None and (
            table.ndim != 2 or table.shape[0] != heads or table.shape[1] not in (1, self.head_dim)
        ):
            raise ValueError(f"{name} must be [{heads}, 1] or [{heads}, {self.head_dim}], not {list(table.shape)}")

    @property
    def num_maps(self) -> int:
        """Number of position blocks with a map of their own; 1 if K's map is the same everywhere."""
        table = self.k_equalizer if self.k_center is None else self.k_center
        return 1 if table is None or table.ndim == 2 else len(table)

    def at(self, block: int) -> "AttentionScheme":
        """The scheme with the map of this position block, [Hkv, D]."""
        number = min(block, self.num_maps - 1)
        return self._with_maps(lambda table: table[number])

    def starting_at(self, position: int) -> "AttentionScheme":
        """The scheme for a sequence whose first token is at `position`: each of its keys has the map of its position.

        If the sequence begins inside a block, smaller blocks repeat the maps. The attention adds a bias to the scores
        for each key's map, relative to the map of the first key (for a sequence from 0: to map 0).

        Raises:
            ValueError: `position` is not a multiple of TILE, so tiles would contain other keys.
        """
        if position % TILE:
            raise ValueError(f"a sequence can only start at a multiple of {TILE}, not at {position}")
        size, last = math.gcd(position, self.map_block), self.num_maps - 1
        maps = [place // self.map_block for place in range(position, last * self.map_block, size)] + [last]
        return replace(self._with_maps(lambda table: table[maps]), map_block=size)

    def _with_maps(self, choose: Callable[[Array], Array]) -> "AttentionScheme":
        def chosen(table: Array | None) -> Array | None:
            return table if table is None or table.ndim == 2 else choose(table)

        return replace(self, k_center=chosen(self.k_center), k_equalizer=chosen(self.k_equalizer))

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token in this layer's cache."""
        scales = (self.k_scale is None) + (self.v_scale is None)
        return self.num_kv_heads * (2 * self.padded_dim + 2 * scales)

    @property
    def padded_dim(self) -> int:
        """Channels per head in the cache, with padding."""
        return -(-self.head_dim // PADDING) * PADDING

    @property
    def summary(self) -> str:
        """A short human-readable description."""
        k, v = _granularity(self.k_scale), _granularity(self.v_scale)
        scale = k if k == v else f"of K {k}, of V {v}"
        maps = [
            name
            for name, used in (
                ("centered", self.k_center is not None),
                ("equalized", self.k_equalizer is not None),
                ("rotated", self.rotation_block > 0),
            )
            if used
        ]
        return f"int8, scale {scale}" + (f", K {', '.join(maps)}" if maps else "") + f", P up to {self.p_levels}"


def written_out(table: Array | None, dim: int, dimensions: int = 2) -> Floats | None:
    """A scheme's table [..., heads, 1 or D] as contiguous float32 [..., heads, D], as kernels take it; one with three
    dimensions has the maps first."""
    if table is None:
        return None
    wide = np.broadcast_to(np.asarray(table, np.float32), (*table.shape[:-1], dim))
    return np.ascontiguousarray(wide[None] if wide.ndim < dimensions else wide)


def by_channel(table: Array | None) -> bool:
    """Whether a table has different values within a head."""
    return table is not None and table.shape[-1] > 1


def _granularity(scale: Array | None) -> str:
    return "per token" if scale is None else "per head" if scale.shape[-1] == 1 else "per channel"
