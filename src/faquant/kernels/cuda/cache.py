"""What the attention kernels read: the int8 cache of one layer, its scheme's tables, and the tokens of a batch."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..arrays import Array
from ..pages import Spans
from ..scheme import TILE, AttentionScheme, by_channel, written_out

ALIGNMENT = 16
"""Bytes that kernels load at once."""

Part: TypeAlias = tuple[tuple[int, ...], torch.dtype]
"""The shape and type of a part of a page."""


@dataclass(frozen=True)
class Int8Cache:
    """The int8 K and V of one layer. A tile of TILE keys of one head lies in one piece, as the matrix units take it.

    Attributes:
        memory: uint8 [pages, bytes]. A page is contiguous: K, V and, if they are dynamic, K's and V's scales.
        k: int8 [pages, tiles, Hkv, TILE, D].
        v: int8 [pages, tiles, Hkv, D, TILE]: integer products need both operands along the summed dimension.
        k_scale, v_scale: float16 [pages, tiles, Hkv, TILE], or None if they are static.
    """

    memory: Tensor
    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None

    @classmethod
    def empty(
        cls,
        scheme: AttentionScheme,
        num_pages: int,
        page_size: int,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> "Int8Cache":
        """A cache with garbage in it, in this memory if it is given.

        Raises:
            ValueError: a page does not hold whole tiles, or `divided` refuses the memory.
        """
        tiles, dim = (tiles_in(page_size), scheme.num_kv_heads), scheme.head_dim
        dynamic = [name for name in "kv" if getattr(scheme, f"{name}_scale") is None]
        parts: list[Part] = [((*tiles, TILE, dim), torch.int8), ((*tiles, dim, TILE), torch.int8)]
        parts += [((*tiles, TILE), torch.float16)] * len(dynamic)
        memory, (k, v, *others) = divided(memory, num_pages, device, *parts)
        scales = dict(zip(dynamic, others, strict=True))
        return cls(memory, k, v, scales.get("k"), scales.get("v"))

    @property
    def tiles_in_page(self) -> int:
        """Tile t of a sequence is tile t % tiles_in_page of page block_table[t // tiles_in_page]."""
        return self.k.shape[1]

    @property
    def page_stride(self) -> int:
        """The distance of pages in bytes."""
        return self.memory.stride(0)


def tiles_in(page_size: int) -> int:
    """The number of tiles in a page.

    Raises:
        ValueError: a page does not hold whole tiles.
    """
    if page_size <= 0 or page_size % TILE:
        raise ValueError(f"a page holds a multiple of {TILE} tokens, not {page_size}")
    return page_size // TILE


def divided(memory: Tensor | None, num_pages: int, device: torch.device, *parts: Part) -> tuple[Tensor, list[Tensor]]:
    """This memory or new memory, uint8 [pages, bytes], and the parts of each page: views [pages, *shape].

    Raises:
        ValueError: the memory has other sizes, lies elsewhere, or not as kernels load it.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in parts]
    if memory is None:
        memory = torch.empty(num_pages, sum(sizes), dtype=torch.uint8, device=device)
    if memory.shape != (num_pages, sum(sizes)) or memory.dtype != torch.uint8 or memory.device != device:
        raise ValueError(
            f"the memory of the pages must be uint8 {[num_pages, sum(sizes)]} on {device}, not {memory.dtype} "
            f"{list(memory.shape)} on {memory.device}"
        )
    distance = memory.stride(0)
    if memory.stride(1) != 1 or distance < sum(sizes) or distance % ALIGNMENT or memory.data_ptr() % ALIGNMENT:
        raise ValueError(f"pages must be contiguous, not overlap, and begin at multiples of {ALIGNMENT} bytes")
    pieces = torch.split(memory, sizes, dim=1)
    return memory, [
        piece.view(dtype).view(num_pages, *shape) for piece, (shape, dtype) in zip(pieces, parts, strict=True)
    ]


def by_token(store: Tensor, block_table: Array, length: int) -> Tensor:
    """The first `length` tokens of a sequence from a store [pages, tiles, Hkv, TILE, ...]: [length, Hkv, ...]."""
    pages = torch.as_tensor(block_table)[: -(-length // (store.shape[1] * TILE))]
    return store[pages.to(store.device)].transpose(2, 3).flatten(0, 2)[:length]


def pinned(x: Array, device: torch.device) -> Tensor:
    """x where a GPU can copy it by itself: a copy from here with `non_blocking` waits for nothing that the GPU does."""
    tensor = torch.as_tensor(x)
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def sent(x: Array, device: torch.device) -> Tensor:
    """x on the device, without waiting for what a GPU does before."""
    return pinned(x, device).to(device, non_blocking=True)


@dataclass(frozen=True)
class SchemeTables:
    """An AttentionScheme on the device. Tables are contiguous float32, with the channels of a head written out; None as
    in the scheme.

    Attributes:
        maps, map_block: number of K's maps, and positions that share one.
        k_center, k_equalizer: [maps, Hkv, D].
        rotation_sign: [D].
        q_scale: [Hq, D]; q_by_channel: whether it differs within a head. k_scale [Hkv, D], k_by_channel alike.
        k_offset, v_scale, v_offset: [Hkv, D].
        score_unit: log2(e) / √D, as float32.
    """

    heads: int
    kv_heads: int
    dim: int
    maps: int
    map_block: int
    k_center: Tensor | None
    k_equalizer: Tensor | None
    rotation_block: int
    rotation_sign: Tensor | None
    v_rotation_block: int
    q_scale: Tensor | None
    q_by_channel: bool
    k_scale: Tensor | None
    k_by_channel: bool
    k_offset: Tensor | None
    v_scale: Tensor | None
    v_offset: Tensor | None
    p_levels: int
    quantized_sum: bool
    score_unit: float

    @classmethod
    def of(cls, scheme: AttentionScheme, device: torch.device) -> "SchemeTables":
        """The tables of this scheme on this device."""

        def table(x: Array | None, dimensions: int = 2) -> Tensor | None:
            wide = written_out(x, scheme.head_dim, dimensions)
            return None if wide is None else torch.tensor(wide, device=device)

        return cls(
            heads=scheme.num_heads,
            kv_heads=scheme.num_kv_heads,
            dim=scheme.head_dim,
            maps=scheme.num_maps,
            map_block=scheme.map_block,
            k_center=table(scheme.k_center, 3),
            k_equalizer=table(scheme.k_equalizer, 3),
            rotation_block=scheme.rotation_block,
            rotation_sign=table(scheme.rotation_sign, 1),
            v_rotation_block=scheme.v_rotation_block,
            q_scale=table(scheme.q_scale),
            q_by_channel=by_channel(scheme.q_scale),
            k_scale=table(scheme.k_scale),
            k_by_channel=by_channel(scheme.k_scale),
            k_offset=table(scheme.k_offset),
            v_scale=table(scheme.v_scale),
            v_offset=table(scheme.v_offset),
            p_levels=scheme.p_levels,
            quantized_sum=scheme.quantized_sum,
            score_unit=float(np.float32(math.log2(math.e) / math.sqrt(scheme.head_dim))),
        )

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class MappedQueries:
    """q transformed for each of K's maps that a token sees, as reference.map_queries; of other maps, garbage.

    Attributes:
        values: int8 [maps, tokens, Hq, D].
        scale, bias: float32 [maps, tokens, Hq], of the scores in log2 units.
    """

    values: Tensor
    scale: Tensor
    bias: Tensor


@dataclass(frozen=True)
class DeviceSpans:
    """The tokens of a batch on the device, and their numbers on the host, from which grids are computed.

    Attributes:
        positions: int32 [tokens], each token's position in its sequence; -1: kernels do nothing for this token.
        sequences: int32 [tokens], each token's row in block_tables.
        block_tables: int32 [sequences, pages]; entries beyond a sequence's end are not read.
        counts, starts: of each sequence, its number of tokens here and the position of the first one.
    """

    positions: Tensor
    sequences: Tensor
    block_tables: Tensor
    counts: list[int]
    starts: list[int]

    @property
    def longest(self) -> int:
        """The greatest position of a token."""
        return max(start + count for count, start in zip(self.counts, self.starts, strict=True)) - 1

    def slots(self, page_size: int) -> Tensor:
        """int64 [tokens]: the slot for each token's key and value; -1 for a token at position -1."""
        positions = self.positions.long()
        pages = self.block_tables[self.sequences.long(), positions // page_size].long()
        return torch.where(positions < 0, -1, pages * page_size + positions % page_size)

    @classmethod
    def of(cls, spans: Spans, device: torch.device) -> "DeviceSpans":
        """Copies in one transfer what is not on the device."""
        counts, starts = spans.tokens_starts.T.tolist()
        sequences = np.repeat(np.arange(len(counts)), counts)
        positions = np.concatenate([np.arange(start, start + n) for n, start in zip(counts, starts, strict=True)])
        parts, tables = [positions, sequences], spans.block_tables
        if not isinstance(tables, Tensor):
            parts.append(tables.reshape(-1))
        packed = sent(np.concatenate(parts).astype(np.int32), device)
        tokens = len(positions)
        if not isinstance(tables, Tensor):
            tables = packed[2 * tokens :].view(tables.shape)
        return cls(packed[:tokens], packed[tokens : 2 * tokens], tables, counts, starts)


@dataclass(frozen=True)
class DeviceBatch:
    """The tokens of a batch on the device: cos and sin float32 [kinds of RoPE, tokens, D], slots int64 [tokens]."""

    spans: DeviceSpans
    cos: Tensor
    sin: Tensor
    slots: Tensor
