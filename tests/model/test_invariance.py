"""The promise of an int8 model: a sequence's logits are bitwise the same however they are computed.

In one chunk or many, alone or in a batch, with any page size and any number of threads.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.config import ModelConfig, parse_config
from faquant.kernels import reference
from faquant.kernels.elementwise import silu_times
from faquant.kernels.pages import Int8Pages
from faquant.kernels.quantizers import hadamard, quantize_rows, quantize_rows_fp16
from faquant.kernels.reference import exp2
from faquant.kernels.scheme import AttentionScheme
from faquant.model.decoder import Decoder, RMSNorm, build_decoder
from faquant.model.linear import DynamicLinear
from faquant.model.load import has_bias, linear_shape
from faquant.model.paged import Chunk, run_chunks
from faquant.model.rope import Rope

VOCABULARY = 50
LONGEST = 300
THREADS = (1, 2, 3)

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
# Rows whose sizes are no multiples of a vector's 16 floats put each row's elements elsewhere in a vector.
ODD = {**LLAMA, "hidden_size": 100, "intermediate_size": 200, "num_attention_heads": 5, "num_key_value_heads": 1}
MODELS = {
    "llama": LLAMA,
    "odd": ODD,
    "odd-qwen2-window": {
        **ODD,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 70,
        "max_window_layers": 1,
    },
    "odd-qwen3": {
        **ODD,
        "model_type": "qwen3",
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 12,
    },
}
SCHEMES = ("default", "static")


class Random:
    """Random parts of a model."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def tensor(self, name: str) -> Tensor:
        if name.endswith("embed_tokens.weight"):
            return self.normal(self.config.vocab_size, self.config.hidden_size)
        size = self.config.head_dim if name.endswith(("q_norm.weight", "k_norm.weight")) else self.config.hidden_size
        return 1 + 0.3 * self.normal(size)

    def linear(self, name: str) -> DynamicLinear:
        n, k = linear_shape(self.config, name)
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=self.generator)
        scale = self.normal(n).abs().add(0.5) / (73 * k**0.5)
        block = {192: 64, 200: 8}[k] if name.endswith("down_proj") else 0
        return DynamicLinear(weight, scale, self.normal(n) if has_bias(self.config, name) else None, block)

    def scheme(self, name: str) -> AttentionScheme:
        c = self.config
        heads, dim = c.num_kv_heads, c.head_dim
        block = dim & -dim
        common = {
            "num_heads": c.num_heads,
            "num_kv_heads": heads,
            "head_dim": dim,
            "k_center": self.normal(heads, dim),
            "k_equalizer": self.normal(heads, dim).abs() + 0.5,
            "rotation_block": block,
        }
        if name == "default":
            return AttentionScheme(**common)
        return AttentionScheme(
            **common,
            k_scale=(self.normal(heads, dim).abs() + 1) / 50,
            v_scale=(self.normal(heads, dim).abs() + 1) / 50,
            v_offset=self.normal(heads, dim).round(),
            quantized_sum=True,
        )


Parts = tuple[Decoder, list[AttentionScheme]]


@cache
def parts(model: str, scheme: str = "default") -> Parts:
    config = parse_config(MODELS[model])
    random = Random(config)
    decoder = build_decoder(config, random.tensor, random.linear, lambda name: False)
    return decoder, [random.scheme(scheme) for _ in range(config.num_layers)]


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


class Cache:
    """Int8 pages that sequences take in random order, poisoned where nothing was written."""

    def __init__(self, made: Parts, page_size: int, room: int) -> None:
        self.decoder, schemes = made
        count = -(-room // page_size) + 8
        self.page_size = page_size
        self.pages = [Int8Pages(scheme, count, page_size) for scheme in schemes]
        for pages in self.pages:
            for store in (pages.k, pages.v):
                store.fill_(0x7F)
            for scales in (pages.k_scale, pages.v_scale):
                if scales is not None:
                    scales.fill_(float("nan"))
        self.free = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()

    def table(self, length: int) -> Tensor:
        return torch.tensor([self.free.pop() for _ in range(-(-length // self.page_size))])

    def logits(self, chunks: list[Chunk]) -> list[Tensor]:
        logits = self.decoder.logits(run_chunks(self.decoder, self.pages, chunks))
        return list(logits.split([len(chunk.tokens) for chunk in chunks]))


def in_chunks(made: Parts, ids: Tensor, sizes: list[int], page_size: int = 128) -> Tensor:
    """Logits [tokens, vocab] of `ids` alone, computed in chunks of those sizes, the last one repeated."""
    cache = Cache(made, page_size, len(ids))
    rope, table = Rope(made[0].config), cache.table(len(ids))
    parts, start = [], 0
    while start < len(ids):
        size = sizes[min(len(parts), len(sizes) - 1)]
        parts += cache.logits([Chunk(ids[start : start + size], start, table, rope)])
        start += size
    return torch.cat(parts)


@cache
def alone(model: str, scheme: str = "default") -> Tensor:
    """The longest sequence's logits, in one chunk by one thread."""
    torch.set_num_threads(1)
    return in_chunks(parts(model, scheme), tokens(LONGEST), [LONGEST])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_token_by_token_as_in_one_chunk(model: str, scheme: str) -> None:
    expected = alone(model, scheme)
    assert expected.isfinite().all()
    assert expected.std(0).min() > 0.1, "the logits tell the tokens apart"
    torch.set_num_threads(1)
    length = 140
    assert torch.equal(in_chunks(parts(model, scheme), tokens(LONGEST)[:length], [1]), expected[:length])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", THREADS)
def test_a_prompt_s_logits_are_those_of_a_longer_one(model: str, scheme: str, count: int) -> None:
    expected = alone(model, scheme)
    torch.set_num_threads(count)
    for length in (7, 65, 129, 300):
        logits = in_chunks(parts(model, scheme), tokens(LONGEST)[:length], [length])
        assert torch.equal(logits, expected[:length])


@settings(max_examples=20)
@given(
    model=st.sampled_from(sorted(MODELS)),
    scheme=st.sampled_from(SCHEMES),
    sizes=st.lists(st.integers(1, LONGEST), min_size=1, max_size=6),
    length=st.integers(1, LONGEST),
    page_size=st.sampled_from([128, 256]),
    count=st.sampled_from(THREADS),
)
def test_chunks_of_any_size_as_in_one(
    model: str, scheme: str, sizes: list[int], length: int, page_size: int, count: int
) -> None:
    expected = alone(model, scheme)[:length]
    torch.set_num_threads(count)
    sizes[-1] = max(sizes[-1], 10)
    assert torch.equal(in_chunks(parts(model, scheme), tokens(LONGEST)[:length], sizes, page_size), expected)


@settings(max_examples=12)
@given(
    model=st.sampled_from(sorted(MODELS)),
    steps=st.lists(
        st.tuples(st.integers(1, 120), st.lists(st.integers(1, 60), max_size=3), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    page_size=st.sampled_from([128, 256]),
    count=st.sampled_from(THREADS),
)
def test_among_other_sequences_as_alone(
    model: str, steps: list[tuple[int, list[int], int]], page_size: int, count: int
) -> None:
    """Each step has a chunk of the sequence, chunks of others, and its place among them."""
    made = parts(model)
    expected = alone(model)
    torch.set_num_threads(count)
    cache = Cache(made, page_size, LONGEST + 3 * 6 * 60 + 6 * page_size)
    ids, rope = tokens(LONGEST), Rope(made[0].config)
    table = cache.table(LONGEST)
    others = [cache.table(6 * 60) for _ in range(3)]
    starts = [0] * 3
    got, start = [], 0
    for size, neighbours, place in steps:
        chunks = []
        for i, count_i in enumerate(neighbours):
            chunks.append(Chunk(tokens(count_i, seed=100 + i), starts[i], others[i], rope))
            starts[i] += count_i
        place = min(place, len(chunks))
        chunks.insert(place, Chunk(ids[start : start + size], start, table, rope))
        got.append(cache.logits(chunks)[place])
        start += size
        if start >= LONGEST:
            break
    assert torch.equal(torch.cat(got), expected[:start])


def test_across_splits_of_the_keys_as_in_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of another split are merged in another run of tiles."""
    monkeypatch.setattr(reference, "SPLIT", reference.TILE)
    torch.set_num_threads(1)
    made, ids = parts("odd"), tokens(LONGEST)
    whole = in_chunks(made, ids, [LONGEST], 128)
    torch.set_num_threads(2)
    assert torch.equal(in_chunks(made, ids, [120, *[1] * 12, 61], 256), whole)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_times": lambda x: silu_times(x, x.flip(-1)),
    "exp2": lambda x: exp2(-x.abs()),
    "norm": lambda x: RMSNorm(torch.linspace(0.5, 1.5, x.shape[-1]), 1e-6)(x),
    "fused norm": lambda x: RMSNorm(torch.linspace(0.5, 1.5, x.shape[-1]), 1e-6, fused=True)(x),
    "hadamard": lambda x: hadamard(x, x.shape[-1] & -x.shape[-1]),
    "quantize_rows": lambda x: torch.cat([part.float().view(len(x), -1) for part in quantize_rows(x)], dim=1),
    "quantize_rows_fp16": lambda x: torch.cat([part.float().view(len(x), -1) for part in quantize_rows_fp16(x)], dim=1),
}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 7, 100, 1536])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_s_bits_do_not_depend_on_the_other_rows(name: str, width: int, count: int) -> None:
    operation = OPERATIONS[name]
    x = torch.randn(260, width, generator=torch.Generator().manual_seed(width)) * 4
    torch.set_num_threads(1)
    expected = torch.cat([operation(row[None]) for row in x])
    torch.set_num_threads(count)
    for rows in (2, 3, 31, 64, 127, 255, 260):
        for first in (0, 3):
            some = x[first : first + rows]
            assert torch.equal(operation(some), expected[first : first + rows])
