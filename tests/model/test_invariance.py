"""The logits of a sequence from an int8 model are bitwise the same, however they are computed.

In one chunk or many, alone or in a batch, with any page size and any number of threads.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import cpu
from faquant.kernels.arrays import Floats, Integers
from faquant.kernels.modules import RMSNorm, silu_times
from faquant.kernels.quantizers import hadamard, quantize_rows, quantize_rows_fp16
from faquant.kernels.reference import exp2
from faquant.kernels.scheme import TILE
from faquant.kernels.torch_backend import TorchRMSNorm
from faquant.model.paged import Chunk
from faquant.model.rope import Rope
from oracles.random_decoder import MODELS, SCHEMES, Cache, Parts, parts, tokens
from oracles.threads import set_threads

LONGEST = 300
THREADS = (1, 2, 3)


def in_chunks(made: Parts, ids: Integers, sizes: list[int], page_size: int = 128) -> Floats:
    """Logits [tokens, vocab] of `ids` alone, computed in chunks of those sizes, the last one repeated."""
    cache = Cache(made, page_size, len(ids))
    rope, table = Rope(made[0].config), cache.table(len(ids))
    parts, start = [], 0
    while start < len(ids):
        size = sizes[min(len(parts), len(sizes) - 1)]
        parts += cache.logits([Chunk(ids[start : start + size], start, table, rope)])
        start += size
    return np.concatenate(parts)


@cache
def alone(model: str, scheme: str = "default") -> Floats:
    """The longest sequence's logits, in one chunk by one thread."""
    set_threads(1)
    return in_chunks(parts(model, scheme), tokens(LONGEST), [LONGEST])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_token_by_token_as_in_one_chunk(model: str, scheme: str) -> None:
    expected = alone(model, scheme)
    assert np.isfinite(expected).all()
    assert expected.std(0).min() > 0.1, "the logits tell the tokens apart"
    set_threads(1)
    length = 140
    assert np.array_equal(in_chunks(parts(model, scheme), tokens(LONGEST)[:length], [1]), expected[:length])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", THREADS)
def test_a_prompt_s_logits_are_those_of_a_longer_one(model: str, scheme: str, count: int) -> None:
    expected = alone(model, scheme)
    set_threads(count)
    for length in (7, 65, 129, 300):
        logits = in_chunks(parts(model, scheme), tokens(LONGEST)[:length], [length])
        assert np.array_equal(logits, expected[:length])


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
    set_threads(count)
    sizes[-1] = max(sizes[-1], 10)
    assert np.array_equal(in_chunks(parts(model, scheme), tokens(LONGEST)[:length], sizes, page_size), expected)


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
    """Each step has a chunk of the sequence, chunks of others, and its index among them."""
    made = parts(model)
    expected = alone(model)
    set_threads(count)
    cache = Cache(made, page_size, LONGEST + 3 * 6 * 60 + 6 * page_size)
    ids, rope = tokens(LONGEST), Rope(made[0].config)
    table = cache.table(LONGEST)
    others = [cache.table(6 * 60) for _ in range(3)]
    starts = [0] * 3
    got, start = [], 0
    for size, neighbors, place in steps:
        chunks = []
        for i, count_i in enumerate(neighbors):
            chunks.append(Chunk(tokens(count_i, seed=100 + i), starts[i], others[i], rope))
            starts[i] += count_i
        place = min(place, len(chunks))
        chunks.insert(place, Chunk(ids[start : start + size], start, table, rope))
        got.append(cache.logits(chunks)[place])
        start += size
        if start >= LONGEST:
            break
    assert np.array_equal(np.concatenate(got), expected[:start])


def test_across_splits_of_the_keys_as_in_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of another split are merged in another run of tiles."""
    set_threads(1)
    made, ids = parts("odd"), tokens(600)
    in_one_split = in_chunks(made, ids, [600], 128)
    monkeypatch.setattr(cpu, "SPLIT", 2 * TILE)
    whole = in_chunks(made, ids, [600], 128)
    assert not np.array_equal(whole, in_one_split)
    set_threads(2)
    assert np.array_equal(in_chunks(made, ids, [120, *[1] * 12, 61, 50, 200, 97], 256), whole)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_times": lambda x: silu_times(x, x.flip(-1)),
    "exp2": lambda x: exp2(-x.abs()),
    "norm of torch": lambda x: TorchRMSNorm(torch.linspace(0.5, 1.5, x.shape[-1]), 1e-6)(x),
    "norm": lambda x: RMSNorm(np.linspace(0.5, 1.5, x.shape[-1], dtype=np.float32), 1e-6)(x),
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
    set_threads(1)
    expected = torch.cat([operation(row[None]) for row in x])
    set_threads(count)
    for rows in (2, 3, 31, 64, 127, 255, 260):
        for first in (0, 3):
            some = x[first : first + rows]
            assert torch.equal(operation(some), expected[first : first + rows])
