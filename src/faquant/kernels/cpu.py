"""The CPU backend: NumPy arrays and the C++ kernels. All float arithmetic is float32, and the bits of a row depend only
on the row and on what it attends to."""

from collections.abc import Sequence
from typing import Any

from ..errors import FaquantError
from . import _C, modules, threads
from .arrays import Array, Floats, Integers, Stored, widen
from .backend import Embedding, FusedLayers, Linear, Norm, Pages
from .isa import cpu_name, selected_isa
from .memory import available_memory
from .pages import BFloat16Pages, FloatPages, Int8Pages, PackedPages, Spans
from .scheme import SPLIT, AttentionScheme
from .tables import DynamicTable, LinearTable, StaticTable
from .threads import ALL_THREADS

MAX_CACHE_BYTES = 4 << 30
"""The size of a cache if nothing else is said."""


class CpuBackend:
    """Backend for CPUs; `isa` forces an instruction set."""

    def __init__(self, isa: str | None = None) -> None:
        self._isa = isa

    @property
    def description(self) -> str:
        return f"{selected_isa()} ({cpu_name()}), {threads.count()} threads"

    def linear(self, table: LinearTable) -> Linear:
        if isinstance(table, DynamicTable):
            return modules.DynamicLinear(
                table.weight,
                table.scale,
                table.bias,
                table.hadamard_block,
                table.input_multiplier,
                table.input_steps,
            )
        if isinstance(table, StaticTable):
            return modules.StaticLinear(
                table.weight,
                table.input_scale,
                table.input_offset,
                table.quant_bias,
                table.deq_scale,
                table.input_multiplier,
            )
        return modules.FloatLinear(table.weight, None if table.bias is None else widen(table.bias))

    def norm(self, weight: Array, eps: float, bias: Array | None = None) -> Norm:
        return modules.RMSNorm(widen(weight), eps, None if bias is None else widen(bias))

    def embedding(self, weight: Array) -> Embedding:
        return StoredEmbedding(weight)

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        return modules.rope(x, cos, sin)

    def silu_times(self, gate: Array, up: Array) -> Array:
        return modules.silu_times(gate, up)

    def gelu_times(self, gate: Array, up: Array) -> Array:
        return modules.gelu_times(gate, up)

    def int8_pages(self, scheme: AttentionScheme, num_pages: int, page_size: int, memory: Array | None = None) -> Pages:
        return Int8Pages(scheme, num_pages, page_size, self._isa, memory)

    def float_pages(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        num_pages: int,
        page_size: int,
        dtype: str = "float32",
        memory: Array | None = None,
    ) -> Pages:
        kind = BFloat16Pages if dtype == "bfloat16" else FloatPages
        return kind(num_heads, num_kv_heads, head_dim, num_pages, page_size, self._isa, memory)

    def can_fuse(self, layer: Any, pages: Pages) -> bool:
        return bool(layer.is_int8) and pages.is_packed

    def fuse(
        self, layers: Sequence[Any], pages: Sequence[Pages], windows: Sequence[int | None], isa: str | None = None
    ) -> FusedLayers:
        return CpuLayers(layers, pages, windows, isa or self._isa)

    def cache_memory(self) -> int:
        return min(MAX_CACHE_BYTES, available_memory() // 2)

    def explain(self, error: Exception) -> FaquantError | None:
        return None


class StoredEmbedding:
    """An embedding [vocab, hidden] in its stored dtype; rows are converted to float32 on lookup."""

    def __init__(self, weight: Stored) -> None:
        self.weight = weight

    def __getitem__(self, tokens: Integers) -> Floats:
        return widen(self.weight[tokens])


class CpuLayers:
    """Layers with int8 linears and packed caches, run in one C++ call. Weights and pages are bound here; replacing them
    later has no effect."""

    def __init__(
        self, layers: Sequence[Any], pages: Sequence[Pages], windows: Sequence[int | None], isa: str | None
    ) -> None:
        self._pages = [each for each in pages if isinstance(each, PackedPages)]
        self._isa = isa
        self._kernels = _C.DecoderLayers()
        for layer, cache, window in zip(layers, self._pages, windows, strict=True):
            norms = [layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm]
            norms += [layer.attention_output_norm, layer.mlp_output_norm]
            self._kernels.add(
                linears=[linear.kernel for linear in layer.linears],
                norms=[None if norm is None else norm.kernel for norm in norms],
                cache=cache.cache,
                window=window,
                rope=layer.rope_kind,
                gelu=layer.is_gelu,
            )

    def run(self, x: Array, tables: tuple[Array, Array], spans: Spans) -> None:
        beyond = self._kernels.run(x, *tables, spans.tokens_starts, spans.block_tables, SPLIT, ALL_THREADS, self._isa)
        for pages, (q, k, v) in zip(self._pages, beyond, strict=True):
            pages.count_saturated(len(x), q=q, k=k, v=v)
