"""Cache pages of one layer on the GPU."""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from .. import quantizers
from ..arrays import Array, Integers
from ..pages import Spans
from ..saturation import Saturation
from ..scheme import AttentionScheme
from .attention import attend
from .attention_inputs import append, map_queries
from .cache import DeviceSpans, Int8Cache, SchemeTables, by_token, sent
from .modules import current, moved_to_device


class Int8Pages:
    """int8 K and V, with float16 scales if they are dynamic.

    Raises:
        ValueError: a page does not hold whole tiles, or the memory does not fit.
    """

    is_packed = True

    def __init__(
        self,
        scheme: AttentionScheme,
        num_pages: int,
        page_size: int,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> None:
        self.scheme, self.num_pages, self.page_size, self.device = scheme, num_pages, page_size, device
        self.tables = SchemeTables.of(scheme, device)
        self.cache = Int8Cache.empty(scheme, num_pages, page_size, device, memory)
        self.beyond = torch.zeros(3, dtype=torch.int64, device=device)
        """Values of q, k and v beyond their static scales."""
        self.tokens_appended = 0

    @property
    def saturation(self) -> Saturation:
        """The counts so far; waits for the GPU."""
        counts = Saturation()
        for name, beyond in zip("qkv", self.beyond.tolist(), strict=True):
            if getattr(self.scheme, f"{name}_scale") is not None:
                heads = self.scheme.num_heads if name == "q" else self.scheme.num_kv_heads
                counts.count(name, self.tokens_appended * heads * self.scheme.head_dim, beyond)
        return counts

    @property
    def bytes_per_token(self) -> int:
        return self.cache.memory.shape[1] // self.page_size

    def append(self, k: Tensor, v: Tensor, slots: Integers, positions: Integers) -> None:
        keys, values = (torch.as_tensor(x).to(self.device) for x in (k, v))
        to, at = (sent(x, self.device) for x in (slots, positions.astype(np.int32)))
        with current(self.device):
            append(keys, values, to, at, self.cache, self.tables, self.beyond)
        self.tokens_appended += len(k)

    @moved_to_device
    def attend(self, q: Tensor, spans: Spans, window: int | None = None) -> Tensor:
        on_device = DeviceSpans.of(spans, self.device)
        maps = self.maps_of(on_device)
        queries = map_queries(q, on_device.positions, self.tables, maps, self.beyond, window=window)
        return attend(queries, self.cache, self.tables, on_device, window)

    def maps_of(self, spans: DeviceSpans) -> int:
        """How many of K's maps the spans' tokens see at most."""
        return min(self.tables.maps, spans.longest // self.tables.map_block + 1)

    def copy_page(self, source: int, target: int) -> None:
        self.cache.memory[target] = self.cache.memory[source]

    def read(self, block_table: Array, length: int) -> tuple[Tensor, Tensor]:
        return quantizers.dequantize_cache(*self.read_bytes(block_table, length), self.scheme)

    def read_bytes(self, block_table: Array, length: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """int8 K and V [length, Hkv, D] and their scales float16 [length, Hkv] in the CPU's memory, as reference.attend
        takes them."""
        cache = self.cache
        k8, v8, k_scale, v_scale = (
            None if store is None else by_token(store, block_table, length).cpu().contiguous()
            for store in (cache.k, cache.v.transpose(3, 4), cache.k_scale, cache.v_scale)
        )
        return cast(Tensor, k8), cast(Tensor, v8), k_scale, v_scale
