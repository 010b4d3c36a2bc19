"""Float cache pages of one layer on the GPU, with attention in torch: for layers that are not quantized, and to compare
int8 with bfloat16. Their bits may depend on the batch."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..arrays import Array, Integers
from ..pages import Spans
from ..saturation import Saturation
from .modules import on_gpu


class FloatPages:
    """K and V [pages, page_size, Hkv, D] in float32 or bfloat16."""

    is_packed = False

    def __init__(
        self, num_kv_heads: int, head_dim: int, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.saturation = Saturation()
        self.device = device
        self.k = torch.empty(num_pages, page_size, num_kv_heads, head_dim, dtype=dtype, device=device)
        self.v = torch.empty_like(self.k)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.k.shape[2] * self.k.shape[3] * self.k.element_size()

    def append(self, k: Tensor, v: Tensor, slots: Integers, positions: Integers) -> None:
        at = torch.as_tensor(slots).to(self.k.device)
        self.k.flatten(0, 1)[at] = k.to(self.device, self.k.dtype)
        self.v.flatten(0, 1)[at] = v.to(self.device, self.v.dtype)

    @on_gpu
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
        out = scaled_dot_product_attention(query, k, v, attn_mask=seen, enable_gqa=True)
        return out[0].transpose(0, 1).float()

    def copy_page(self, source: int, target: int) -> None:
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    def read(self, block_table: Array, length: int) -> tuple[Tensor, Tensor]:
        k, v = self._stored(np.asarray(block_table), length)
        return k.float().cpu(), v.float().cpu()

    def _stored(self, table: Integers, length: int) -> tuple[Tensor, Tensor]:
        pages = torch.as_tensor(table[: -(-length // self.page_size)]).to(self.k.device)
        return self.k[pages].flatten(0, 1)[:length], self.v[pages].flatten(0, 1)[:length]
