"""Cache pages of one layer. Nothing else indexes into a page: append, attend, copy_page and read are all there is.

A slot is page · page_size + offset. A block table lists the pages of one sequence in order.
"""

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import cpu, quantizers, reference
from .saturation import Saturation
from .scheme import MAP_BLOCK, AttentionScheme


class Pages(Protocol):
    """What a layer's attention needs of its cache, whatever stands in it."""

    page_size: int
    num_pages: int
    saturation: Saturation
    """What was appended and asked beyond the calibrated ranges."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in this layer."""

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Store k and v, float32 [tokens, Hkv, D] after RoPE, in the slots, int64 [tokens]; `positions`, int64
        [tokens], says which number each token has in its sequence."""

    def attend(self, q: Tensor, block_table: Tensor, start: int, window: int | None = None) -> Tensor:
        """Causal attention of q, float32 [tokens, Hq, D] after RoPE, whose first token is number `start` of its
        sequence. Returns float32 [tokens, Hq, D]."""

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` an exact copy of page `source`."""

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """K and V of the first `length` tokens as float32 [length, Hkv, D], for evaluation."""


class Int8Pages:
    """int8 K and V [pages, page_size, Hkv, D], with float16 scales [pages, page_size, Hkv] where they are dynamic."""

    def __init__(self, scheme: AttentionScheme, num_pages: int, page_size: int) -> None:
        self.scheme = scheme
        self.num_pages = num_pages
        self.page_size = page_size
        self.saturation = Saturation()
        shape = (num_pages, page_size, scheme.num_kv_heads)
        self.k = torch.zeros(*shape, scheme.head_dim, dtype=torch.int8)
        self.v = torch.zeros(*shape, scheme.head_dim, dtype=torch.int8)
        self.k_scale = torch.zeros(shape, dtype=torch.float16) if scheme.k_scale is None else None
        self.v_scale = torch.zeros(shape, dtype=torch.float16) if scheme.v_scale is None else None

    @property
    def bytes_per_token(self) -> int:
        return self.scheme.bytes_per_token

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        blocks = (positions // MAP_BLOCK).clamp_max(self.scheme.num_maps - 1)
        for block in range(int(blocks.min()), int(blocks.max()) + 1):
            there = blocks == block
            values, scale = quantizers.quantize_k(k[there], self.scheme.at(block), self.saturation)
            _store(self.k, self.k_scale, slots[there], values, scale)
        _store(self.v, self.v_scale, slots, *quantizers.quantize_v(v, self.scheme, self.saturation))

    def attend(self, q: Tensor, block_table: Tensor, start: int, window: int | None = None) -> Tensor:
        k, v, k_scale, v_scale = self._gather(block_table, start + q.shape[0])
        kernel = partial(cpu.attend, split=reference.SPLIT, threads=torch.get_num_threads())
        return reference.attend(
            q, k, v, k_scale, v_scale, self.scheme, start, window, kernel=kernel, saturation=self.saturation
        )

    def copy_page(self, source: int, target: int) -> None:
        for store in (self.k, self.v, self.k_scale, self.v_scale):
            if store is not None:
                store[target] = store[source]

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        k8, v8, k_scale, v_scale = self._gather(block_table, length)
        k = [
            quantizers.dequantize_k(
                k8[some], None if k_scale is None else k_scale[some], self.scheme.at(some.start // MAP_BLOCK)
            )
            for some in (slice(start, start + MAP_BLOCK) for start in range(0, length, MAP_BLOCK))
        ]
        return torch.cat(k), quantizers.dequantize_v(v8, v_scale, self.scheme)

    def _gather(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        k, v = (_gather(store, block_table, length) for store in (self.k, self.v))
        k_scale, v_scale = (
            None if store is None else _gather(store, block_table, length) for store in (self.k_scale, self.v_scale)
        )
        return k, v, k_scale, v_scale


class FloatPages:
    """float32 K and V [pages, page_size, Hkv, D], for layers whose attention is not quantized."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int) -> None:
        self.group = num_heads // num_kv_heads
        self.num_pages = num_pages
        self.page_size = page_size
        self.saturation = Saturation()
        self.k = torch.zeros(num_pages, page_size, num_kv_heads, head_dim)
        self.v = torch.zeros_like(self.k)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.k.shape[2] * self.k.shape[3] * self.k.element_size()

    def append(self, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor) -> None:
        self.k.flatten(0, 1)[slots] = k
        self.v.flatten(0, 1)[slots] = v

    def attend(self, q: Tensor, block_table: Tensor, start: int, window: int | None = None) -> Tensor:
        k, v = self.read(block_table, start + q.shape[0])
        return float_attend(q, k, v, start, window)

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        return _gather(self.k, block_table, length), _gather(self.v, block_table, length)


def float_attend(q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    """Causal float attention: q [tokens, Hq, D] at `start` over k, v [start + tokens, Hkv, D], all of one dtype."""
    tokens, heads, dim = q.shape
    length, kv_heads, _ = k.shape
    group = heads // kv_heads
    if start == 0 and window is None and length == tokens:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
        return scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
    # What no query sees is left out, not multiplied by zero: it may be freed memory and hold NaN.
    oldest = 0 if window is None else max(0, start - window + 1)
    k, v = k[oldest:], v[oldest:]
    positions = torch.arange(start, start + tokens)[:, None]
    keys = torch.arange(oldest, length)
    visible = keys <= positions
    if window is not None:
        visible &= keys > positions - window
    rows = q.view(tokens, kv_heads, group, dim).permute(1, 0, 2, 3).flatten(1, 2)
    scores = (rows @ k.permute(1, 2, 0)).view(kv_heads, tokens, group, -1) / math.sqrt(dim)
    p = scores.masked_fill(~visible[:, None, :], -math.inf).softmax(-1)
    out = p.flatten(1, 2) @ v.transpose(0, 1)
    return out.view(kv_heads, tokens, group, dim).permute(1, 0, 2, 3).reshape(tokens, heads, dim)


def _store(store: Tensor, scales: Tensor | None, slots: Tensor, values: Tensor, scale: Tensor | None) -> None:
    store.flatten(0, 1)[slots] = values
    if scales is not None and scale is not None:
        scales.flatten(0, 1)[slots] = scale


def _gather(store: Tensor, block_table: Tensor, length: int) -> Tensor:
    pages = -(-length // store.shape[1])
    return store[block_table[:pages]].flatten(0, 1)[:length]
