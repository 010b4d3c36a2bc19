"""Runs decoder layers with int8 linears and an int8 cache on the GPU, the counterpart of csrc/ops/decoder_layer.cpp."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arrays import Array
from ..pages import Spans
from .append import append
from .cache import DeviceBatch, DeviceSpans
from .graphs import DecodeGraphs
from .modules import Int8Linear, RMSNorm, stacked
from .pages import Int8Pages
from .queries import rope_heads
from .rounding import round_gated, round_inputs


class CudaLayers:
    """Layers that run in one call. Weights and pages are bound here; replacing them later has no effect."""

    def __init__(
        self, layers: Sequence[Any], pages: Sequence[Int8Pages], windows: Sequence[int | None], device: torch.device
    ) -> None:
        self._device = device
        self._pages = pages
        self._layers = [_Layer(*parts) for parts in zip(layers, pages, windows, strict=True)]
        self._page_size = pages[0].page_size
        self._graphs = DecodeGraphs(self._run, self._page_size, device)

    def run(self, x: Tensor, tables: tuple[Array, Array], spans: Spans) -> None:
        if self._graphs.fits(spans):
            self._graphs.run(x, tables, spans)
        else:
            self._run(x, self._batch(tables, spans))
        for pages in self._pages:
            pages.tokens_appended += len(x)

    def _run(self, x: Tensor, batch: DeviceBatch) -> None:
        for layer in self._layers:
            layer.run(x, batch)

    def _batch(self, tables: tuple[Array, Array], spans: Spans) -> DeviceBatch:
        on_device = DeviceSpans.of(spans, self._device)
        cos, sin = (torch.as_tensor(table).flatten(1).to(self._device) for table in tables)
        return DeviceBatch(on_device, cos, sin, on_device.slots(self._page_size))


class _Layer:
    """One layer: norm, q, k, v in one product, attention, o and the gated MLP."""

    def __init__(self, layer: Any, pages: Int8Pages, window: int | None) -> None:
        self._pages, self._window = pages, window
        self._input_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms: tuple[RMSNorm, RMSNorm] | None = (layer.q_norm, layer.k_norm) if layer.q_norm else None
        self._qkv = _Products([layer.q_proj, layer.k_proj, layer.v_proj])
        self._o, self._down = layer.o_proj, layer.down_proj
        self._gate_up = _Products([layer.gate_proj, layer.up_proj])

    def run(self, x: Tensor, batch: DeviceBatch) -> None:
        """The residual stream x [tokens, hidden] after this layer, in place."""
        pages, tables = self._pages, self._pages.tables
        qkv = self._qkv(x, self._input_norm)
        rope_heads(qkv, batch.cos, batch.sin, tables.heads, tables.kv_heads, self._head_norms)
        q, k, v = qkv.view(len(x), -1, tables.dim).split([tables.heads, tables.kv_heads, tables.kv_heads], dim=1)
        append(k, v, batch.slots, batch.spans.positions, pages.cache, tables, pages.beyond)
        attention = pages.attend_on_device(q, batch.spans, self._window).flatten(1)
        self._o.product(round_inputs(attention, self._o.rounding), residual=x, out=x)
        gate_up = self._gate_up(x, self._mlp_norm)
        self._down.product(round_gated(gate_up, self._down.rounding), residual=x, out=x)


class _Products:
    """Linears with the same input: one product if they round it alike."""

    def __init__(self, linears: Sequence[Int8Linear]) -> None:
        together = stacked(linears)
        self._linears = list(linears) if together is None else [together]

    def __call__(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """float32 [tokens, outputs of all of them] for x before the norm."""
        parts = [linear.product(round_inputs(x, linear.rounding, norm)) for linear in self._linears]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
