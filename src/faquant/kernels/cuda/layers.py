"""Runs decoder layers with int8 linears and an int8 cache on the GPU, the counterpart of csrc/ops/decoder_layer.cpp."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..arrays import Array
from ..pages import Spans
from .attention import attend
from .attention_inputs import Rotation, attention_inputs
from .cache import DeviceBatch, DeviceSpans, sent
from .elementwise import gelu_times, rms_norm
from .graphs import DecodeGraphs
from .linear import FEW_TOKENS, SplitSums
from .modules import Int8Linear, RMSNorm, current, stacked
from .pages import Int8Pages
from .rounding import RoundedInputs, round_gated, round_inputs


class CudaLayers:
    """Layers that run in one call. Weights and pages are bound here; replacing them later has no effect."""

    def __init__(
        self, layers: Sequence[Any], pages: Sequence[Int8Pages], windows: Sequence[int | None], device: torch.device
    ) -> None:
        self._device = device
        self._pages = pages
        self._layers = [_Layer(*parts) for parts in zip(layers, pages, windows, strict=True)]
        shapes = {linear.weight.shape for layer in self._layers for linear in layer.linears}
        self._sums = SplitSums.empty(sorted(shapes), FEW_TOKENS, device)
        self._page_size = pages[0].page_size
        # Not a method: two objects that refer to each other would keep the GPU's memory until Python looks for such.
        self._step = partial(_run, self._layers, self._sums)
        self._graphs = DecodeGraphs(self._step, self._page_size, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of the weights before they were stacked

    def run(self, x: Tensor, tables: tuple[Array, Array], spans: Spans) -> None:
        with current(self._device):
            if self._graphs.fits(spans):
                self._graphs.run(x, tables, spans)
            else:
                self._step(x, self._batch(tables, spans))
        for pages in self._pages:
            pages.tokens_appended += len(x)

    def _batch(self, tables: tuple[Array, Array], spans: Spans) -> DeviceBatch:
        on_device = DeviceSpans.of(spans, self._device)
        cos, sin = (sent(table, self._device).transpose(0, 1).contiguous() for table in tables)
        return DeviceBatch(on_device, cos, sin, on_device.slots(self._page_size))


def _run(layers: Sequence["_Layer"], sums: SplitSums, x: Tensor, batch: DeviceBatch) -> None:
    for layer in layers:
        layer.run(x, batch, sums if len(x) <= FEW_TOKENS else None)


class _Layer:
    """One layer: norm, q, k, v in one product, attention, o and the gated MLP."""

    def __init__(self, layer: Any, pages: Int8Pages, window: int | None) -> None:
        self._pages, self._window, self._rope = pages, window, layer.rope_kind
        self._attention_norm, self._mlp_norm = _norm(layer.attention_norm), _norm(layer.mlp_norm)
        self._attention_output_norm = _norm(layer.attention_output_norm)
        self._mlp_output_norm = _norm(layer.mlp_output_norm)
        self._q_norm, self._k_norm = layer.q_norm, layer.k_norm
        self._norms_all_heads, self._is_gelu = layer.norms_all_heads, layer.is_gelu
        self._qkv = _Products([layer.q_proj, layer.k_proj, layer.v_proj])
        self._o, self._down = layer.o_proj, layer.down_proj
        self._gate_up = _Products([layer.gate_proj, layer.up_proj])

    @property
    def linears(self) -> list[Int8Linear]:
        """Those of its products."""
        return [*self._qkv.linears, self._o, *self._gate_up.linears, self._down]

    def run(self, x: Tensor, batch: DeviceBatch, sums: SplitSums | None) -> None:
        """The residual stream x [tokens, hidden] after this layer, in place."""
        pages, spans = self._pages, batch.spans
        qkv = self._qkv(x, self._attention_norm, sums)
        if self._norms_all_heads:
            self._norm_all_heads(qkv)
        maps = pages.maps_of(spans)
        queries = attention_inputs(
            qkv,
            self._rotation(batch),
            batch.slots,
            spans.positions,
            pages.cache,
            pages.tables,
            maps,
            pages.beyond,
            window=self._window,
        )
        attention = attend(queries, pages.cache, pages.tables, spans, self._window).flatten(1)
        self._add(x, self._o, round_inputs(attention, self._o.rounding), self._attention_output_norm, sums)
        gate_up = self._gate_up(x, self._mlp_norm, sums)
        if self._is_gelu:
            inner = round_inputs(gelu_times(*gate_up.chunk(2, dim=1)), self._down.rounding)
        else:
            inner = round_gated(gate_up, self._down.rounding)
        self._add(x, self._down, inner, self._mlp_output_norm, sums)

    @staticmethod
    def _add(
        x: Tensor, linear: Int8Linear, inputs: RoundedInputs, norm: RMSNorm | None, sums: SplitSums | None
    ) -> None:
        """Add the linear, after its norm if there is one, to x in place."""
        if norm is None:
            linear.product(inputs, x, x, sums)
        else:
            y = linear.product(inputs, sums=sums)
            x += rms_norm(y, norm.weight, norm.eps, norm.bias, y)

    def _norm_all_heads(self, qkv: Tensor) -> None:
        """The norms of q and k, in place."""
        start = 0
        for norm in (self._q_norm, self._k_norm):
            some = qkv[:, start : start + len(norm.weight)]
            rms_norm(some, norm.weight, norm.eps, out=some)
            start += len(norm.weight)

    def _rotation(self, batch: DeviceBatch) -> Rotation:
        cos, sin = batch.cos[self._rope], batch.sin[self._rope]
        if self._q_norm is None or self._norms_all_heads:
            return Rotation(cos, sin)
        return Rotation(cos, sin, self._q_norm.weight, self._k_norm.weight, self._q_norm.eps)


def _norm(norm: Any) -> RMSNorm | None:
    return norm if isinstance(norm, RMSNorm) else None


class _Products:
    """Linears with the same input: one product if they round it alike."""

    def __init__(self, linears: Sequence[Int8Linear]) -> None:
        together = stacked(linears)
        self.linears = list(linears) if together is None else [together]

    def __call__(self, x: Tensor, norm: RMSNorm | None, sums: SplitSums | None) -> Tensor:
        """float32 [tokens, outputs of all of them] for x before the norm."""
        parts = [linear.product(round_inputs(x, linear.rounding, norm), sums=sums) for linear in self.linears]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
