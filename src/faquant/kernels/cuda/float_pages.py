"""Float cache pages of one layer on the GPU: float32 for layers that are not quantized, with attention in torch, and
bfloat16 to compare int8 with. Their bits may depend on the batch."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..arrays import Array, Integers
from ..pages import Spans
from ..saturation import Saturation
from ..scheme import TILE, AttentionScheme
from .append_bfloat16 import append_bfloat16
from .attention import FEW_TOKENS
from .bfloat16 import attend_bfloat16
from .cache import DeviceSpans, SchemeTables, by_token, divided, sent, tiles_in
from .modules import current, moved_to_device


class FloatPages:
    """float32 K and V [pages, page_size, Hkv, D].

    Raises:
        ValueError: the memory does not fit.
    """

    is_packed = False

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> None:
        self.num_pages, self.page_size, self.device = num_pages, page_size, device
        self.saturation = Saturation()
        shape = page_size, num_kv_heads, head_dim
        self.memory, (self.k, self.v) = divided(memory, num_pages, device, *[(shape, torch.float32)] * 2)

    @property
    def bytes_per_token(self) -> int:
        return self.memory.shape[1] // self.page_size

    def append(self, k: Tensor, v: Tensor, slots: Integers, positions: Integers) -> None:
        at = sent(slots, self.device)
        page, offset = at // self.page_size, at % self.page_size
        self.k[page, offset] = torch.as_tensor(k).to(self.device)
        self.v[page, offset] = torch.as_tensor(v).to(self.device)

    @moved_to_device
    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        return torch.cat([self._attend(q[rows], start, table, window) for rows, start, table in spans.parts])

    def _attend(self, q: Tensor, start: int, table: Integers, window: int | None) -> Tensor:
        end = start + len(q)
        # Keys that no query sees may be freed memory and hold NaN.
        oldest = 0 if window is None else max(0, start - window + 1)
        k, v = (x[oldest:].transpose(0, 1)[None] for x in self._stored(table, end))
        positions = torch.arange(start, end, device=q.device)[:, None]
        keys = torch.arange(oldest, end, device=q.device)
        seen = keys <= positions
        if window is not None:
            seen &= keys > positions - window
        query = q.to(self.k.dtype).transpose(0, 1)[None]
        # Not cuDNN's, which plans anew for each length.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            out = scaled_dot_product_attention(query, k, v, attn_mask=seen, enable_gqa=True)
        return out[0].transpose(0, 1).float()

    def copy_page(self, source: int, target: int) -> None:
        self.memory[target] = self.memory[source]

    def read(self, block_table: Array, length: int) -> tuple[Tensor, Tensor]:
        k, v = self._stored(np.asarray(block_table), length)
        return k.float().cpu(), v.float().cpu()

    def _stored(self, table: Integers, length: int) -> tuple[Tensor, Tensor]:
        pages = torch.as_tensor(table[: -(-length // self.page_size)]).to(self.device)
        return self.k[pages].flatten(0, 1)[:length], self.v[pages].flatten(0, 1)[:length]


class BFloat16Pages(FloatPages):
    """bfloat16 K [pages, tiles, Hkv, TILE, D] and V [pages, tiles, Hkv, D, TILE], in the layout of the int8 cache, to
    compare int8 with. Decoding takes a kernel of its own, and prompts take torch's.

    Raises:
        ValueError: a page does not hold whole tiles, or the memory does not fit.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> None:
        self.num_pages, self.page_size, self.device = num_pages, page_size, device
        self.saturation = Saturation()
        self._tables = SchemeTables.of(AttentionScheme(num_heads, num_kv_heads, head_dim), device)
        tiles = tiles_in(page_size), num_kv_heads
        parts = ((*tiles, TILE, head_dim), torch.bfloat16), ((*tiles, head_dim, TILE), torch.bfloat16)
        self.memory, (self.k, self.v) = divided(memory, num_pages, device, *parts)
        self.v.zero_()  # values that nobody sees must be finite

    def append(self, k: Tensor, v: Tensor, slots: Integers, positions: Integers) -> None:
        keys, values = (torch.as_tensor(x).to(self.device) for x in (k, v))
        with current(self.device):
            append_bfloat16(keys, values, sent(slots, self.device), self.k, self.v)

    @moved_to_device
    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        if spans.tokens_starts[:, 0].max() > FEW_TOKENS:
            return torch.cat([self._attend(q[rows], start, table, window) for rows, start, table in spans.parts])
        on_device = DeviceSpans.of(spans, self.device)
        return attend_bfloat16(q.bfloat16(), self.k, self.v, self._tables, on_device, window)

    def _stored(self, table: Integers, length: int) -> tuple[Tensor, Tensor]:
        k, v = (by_token(store, table, length) for store in (self.k, self.v.transpose(3, 4)))
        return k, v
