"""Times of attention: decode and prefill, beside SDPA and a kernel that converts the cache to bfloat16."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from faquant.kernels.cuda.attention import attend
from faquant.kernels.cuda.cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from faquant.kernels.scheme import MAP_BLOCK, TILE, AttentionScheme

from . import converting
from .results import Results
from .timing import copy_rate, device, fastest, fits, inputs_for, reason, seconds, warming_up


class Heads(NamedTuple):
    heads: int
    kv_heads: int
    dim: int

    @property
    def name(self) -> str:
        return "/".join(map(str, self))

    @property
    def int8_bytes(self) -> int:
        """Bytes of a token's keys and values with their scales."""
        return self.kv_heads * (2 * self.dim + 4)

    @property
    def bfloat16_bytes(self) -> int:
        return self.kv_heads * 4 * self.dim


SHAPES = (Heads(32, 8, 128), Heads(64, 8, 128), Heads(28, 4, 128), Heads(9, 3, 64))
# The most telling first, in case the time ends.
CONTEXTS, BATCHES = (4096, 32768, 131072, 16384, 1024), (8, 64, 1)
PROMPTS = (2048, 8192)
TIMES = "ours", "one_map", "sdpa", "converting"
MOST_WARM_UP_TOKENS = 1 << 19
"""Larger batches use the same kernels."""


def random_cache(shape: Heads, tiles: int) -> Int8Cache:
    scheme = AttentionScheme(*shape)
    cache = Int8Cache.empty(scheme, tiles, TILE, device())
    for values in (cache.k, cache.v):
        values.random_(-127, 128)
    for scales in (cache.k_scale, cache.v_scale):
        assert scales is not None
        scales.copy_(torch.rand(scales.shape, device=device()) * 0.01 + 0.005)
    return cache


def scheme_for(shape: Heads, length: int) -> AttentionScheme:
    """As the default recipe makes it: K has another map after each MAP_BLOCK positions."""
    maps = -(-length // MAP_BLOCK)
    center, equalizer = (torch.rand(maps, shape.kv_heads, shape.dim) + 0.5 for _ in range(2))
    return AttentionScheme(*shape, k_center=center, k_equalizer=equalizer)


def random_queries(shape: Heads, tokens: int, scheme: AttentionScheme) -> MappedQueries:
    size = scheme.num_maps, tokens, shape.heads
    values = torch.randint(-127, 128, (*size, shape.dim), dtype=torch.int8, device=device())
    return MappedQueries(values, torch.full(size, 0.003, device=device()), torch.randn(size, device=device()))


def one_token_each(block_tables: Tensor, context: int) -> DeviceSpans:
    """The last tokens of sequences of this length, with int32 block_tables [sequences, pages]."""
    rows = len(block_tables)
    positions = torch.full((rows,), context - 1, dtype=torch.int32, device=device())
    sequences = torch.arange(rows, dtype=torch.int32, device=device())
    return DeviceSpans(positions, sequences, block_tables, [1] * rows, [context - 1] * rows)


def _programs() -> int:
    """Programs that keep the GPU busy."""
    on_gpu = device().type == "cuda"
    return 4 * torch.cuda.get_device_properties(device()).multi_processor_count if on_gpu else 8


@dataclass
class Decode:
    """One row of the table of decode attention."""

    shape: Heads
    context: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.context * self.batch

    def measure(self, results: Results) -> dict[str, Any]:
        """Times in seconds; None for what failed, of which there is a note."""
        inputs = inputs_for(self.tokens * self.shape.int8_bytes)
        if not fits(inputs * self.tokens * self.shape.int8_bytes):
            raise MemoryError("the int8 cache does not fit")
        times: dict[str, Any] = dict.fromkeys(TIMES)
        self._time_int8(times, inputs, results)
        inputs = inputs_for(self.tokens * self.shape.bfloat16_bytes)
        if warming_up():
            return times
        if fits(inputs * self.tokens * self.shape.bfloat16_bytes):
            try:
                times["sdpa"], times["sdpa_kind"] = self._sdpa(inputs)
            except Exception as error:
                results.note(f"SDPA, {self}: {reason(error)}")
        else:
            results.note(f"{self}: the bfloat16 cache does not fit into memory")
        return times

    def _time_int8(self, times: dict[str, Any], inputs: int, results: Results) -> None:
        shape, tiles = self.shape, -(-self.tokens // TILE)
        cache = random_cache(shape, inputs * tiles)
        block_tables = torch.randperm(inputs * tiles, device=device()).int().view(inputs, self.batch, -1)
        try:
            spans = [one_token_each(some, self.context) for some in block_tables]
            schemes = {"ours": scheme_for(shape, self.context), "one_map": AttentionScheme(*shape)}
            for name, scheme in schemes.items():
                times[name] = self._time_ours(scheme, cache, spans)
        except Exception as error:
            results.note(f"decode, {self}: {reason(error)}")
        try:
            lengths = torch.full((self.batch,), self.context, dtype=torch.int32, device=device())
            q = torch.randn(self.batch, shape.heads, shape.dim, dtype=torch.bfloat16, device=device())
            assert cache.k_scale is not None
            assert cache.v_scale is not None
            # The same bytes: what they mean does not matter here.
            k, v = cache.k[:, 0], cache.v[:, 0].view(len(cache.v), -1, TILE, shape.dim)
            other = converting.Cache(k, v, cache.k_scale[:, 0], cache.v_scale[:, 0])
            kernels = {
                name: converting.Converting(*shape, lengths, self.context, _programs(), tiling)
                for name, tiling in converting.TILINGS.items()
            }
            calls = {
                name: lambda table, kernel=kernel: kernel(q, other, table)  # type: ignore[misc]
                for name, kernel in kernels.items()
            }
            times["converting"], times["converting_kind"], failures = fastest(calls, list(block_tables))
            if failures:
                results.note(f"converting, {self}: {'; '.join(failures)}")
        except Exception as error:
            results.note(f"converting, {self}: {reason(error)}")

    def _time_ours(self, scheme: AttentionScheme, cache: Int8Cache, spans: list[DeviceSpans]) -> float:
        queries = random_queries(self.shape, self.batch, scheme)
        tables = SchemeTables.of(scheme, device())
        out = torch.empty(self.batch, self.shape.heads, self.shape.dim, device=device())
        return seconds(lambda some: attend(queries, cache, tables, some, None, out), spans)

    def _sdpa(self, inputs: int) -> tuple[float, str]:
        shape = self.shape
        size = inputs, self.batch, shape.kv_heads, self.context, shape.dim
        k, v = (torch.empty(size, dtype=torch.bfloat16, device=device()).normal_() for _ in range(2))
        q = torch.randn(self.batch, shape.heads, 1, shape.dim, dtype=torch.bfloat16, device=device())
        folded = q.view(self.batch, shape.kv_heads, -1, shape.dim)
        calls = {
            "grouped heads": lambda i: scaled_dot_product_attention(q, k[i], v[i], enable_gqa=True),
            "the group as rows": lambda i: scaled_dot_product_attention(folded, k[i], v[i]),
        }
        with flash():
            time, name, _ = fastest(calls, range(inputs))
        return time, name

    def __str__(self) -> str:
        return f"{self.shape.name}, context {self.context:,}, batch {self.batch}"


def flash() -> Any:
    """SDPA with FlashAttention; on the CPU, with what there is."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION] if device().type == "cuda" else [SDPBackend.MATH])


def decode(results: Results, size: str) -> None:
    """Fill the table of decode attention."""
    copy = copy_rate()
    results.fact(**{"device copy, TB/s (read and written)": round(copy / 1e12, 3)})
    shapes, contexts, batches = SHAPES, CONTEXTS, BATCHES
    if size == "quick":
        shapes, contexts = SHAPES[:1], CONTEXTS[:3]
    if size == "tiny":
        shapes, contexts, batches = (Heads(8, 2, 64),), (1152,), (1,)
    for shape in shapes:
        for context in contexts:
            for batch in batches:
                each = Decode(shape, context, batch)
                if results.has("decode", heads=shape.name, context=context, batch=batch):
                    continue
                if results.is_late:
                    results.note(f"The time for decode attention ended before {each}.")
                    return
                if warming_up() and each.tokens > MOST_WARM_UP_TOKENS:
                    continue
                times: dict[str, Any] = dict.fromkeys(TIMES)
                try:
                    times = each.measure(results)
                except Exception as error:
                    results.note(f"decode, {each}: {reason(error)}")
                ours, peers = times["ours"], ("sdpa", "converting")
                rate = each.tokens * shape.int8_bytes / ours if ours else None
                results.row(
                    "decode",
                    heads=shape.name,
                    context=context,
                    batch=batch,
                    **times,
                    rate=rate,
                    share=rate / copy if rate else None,
                    **{f"x_{name}": times[name] / ours if ours and times[name] else None for name in peers},
                )


def prefill(results: Results, size: str) -> None:
    """Fill the table of prefill attention."""
    shapes, prompts = SHAPES[:2], PROMPTS
    if size == "quick":
        shapes = SHAPES[:1]
    if size == "tiny":
        shapes, prompts = (Heads(4, 2, 64),), (140,)
    for tokens in prompts:
        for shape in shapes:
            if results.has("prefill", heads=shape.name, tokens=tokens):
                continue
            if results.is_late:
                results.note(f"The time for prefill attention ended before {shape.name}, {tokens:,} tokens.")
                return
            times: dict[str, float | None] = {"ours": None, "sdpa": None}
            for name, time in (("ours", _time_prefill), ("sdpa", _time_causal_sdpa)):
                try:
                    times[name] = time(shape, tokens)
                except Exception as error:
                    results.note(f"prefill, {name}, {shape.name}, {tokens:,} tokens: {reason(error)}")
            ours, sdpa = times["ours"], times["sdpa"]
            operations = 2 * shape.heads * shape.dim * tokens * (tokens + 1)
            results.row(
                "prefill",
                heads=shape.name,
                tokens=tokens,
                **times,
                operations=operations / ours if ours else None,
                x_sdpa=sdpa / ours if ours and sdpa else None,
            )


def _time_prefill(shape: Heads, tokens: int) -> float:
    tiles = -(-tokens // TILE)
    scheme = scheme_for(shape, tokens)
    cache, queries = random_cache(shape, tiles), random_queries(shape, tokens, scheme)
    positions = torch.arange(tokens, dtype=torch.int32, device=device())
    block_table = torch.randperm(tiles, device=device()).int()[None]
    spans = DeviceSpans(positions, torch.zeros_like(positions), block_table, [tokens], [0])
    tables = SchemeTables.of(scheme, device())
    out = torch.empty(tokens, shape.heads, shape.dim, device=device())
    return seconds(lambda some: attend(some, cache, tables, spans, None, out), [queries])


def _time_causal_sdpa(shape: Heads, tokens: int) -> float:
    def random(heads: int) -> Tensor:
        return torch.randn(1, heads, tokens, shape.dim, dtype=torch.bfloat16, device=device())

    k, v = random(shape.kv_heads), random(shape.kv_heads)
    call = partial(scaled_dot_product_attention, key=k, value=v, is_causal=True, enable_gqa=True)
    with flash():
        return seconds(call, [random(shape.heads)])
