"""The float32 cache: close to float64, bit for bit as defined, and independent of how the work is split."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faquant.kernels import _C, reference
from faquant.kernels import isa as isa_module
from faquant.kernels.torch_backend import float_attend
from oracles import fused

ISAS = isa_module.available_isas()
TILE, SPLIT = 128, 512
Floats = np.ndarray


class Sample:
    """Random q, and a sequence of K and V up to its end."""

    def __init__(self, heads: tuple[int, int, int], tokens: int, start: int, window: int | None = None) -> None:
        self.heads, self.start, self.window = heads, start, window
        num_heads, kv_heads, dim = heads
        rng = np.random.default_rng(tokens + start)
        self.q = rng.standard_normal((tokens, num_heads, dim), np.float32) * np.float32(2)
        self.k, self.v = (rng.standard_normal((start + tokens, kv_heads, dim), np.float32) for _ in range(2))

    def cache(self, page_size: int = 256) -> tuple[Any, np.ndarray]:
        """Shuffled pages with NaN outside of what the queries see, and the sequence's block table."""
        end = len(self.k)
        pages = -(-end // page_size) + 2
        k, v = (np.full((pages, page_size, *self.heads[1:]), np.nan, np.float32) for _ in range(2))
        cache = _C.FloatCache(heads=self.heads[0], k=k, v=v)
        table = np.random.default_rng(1).permutation(pages)
        seen = np.arange(0 if self.window is None else max(0, self.start - self.window + 1), end)
        cache.append(self.k[seen], self.v[seen], table[seen // page_size] * page_size + seen % page_size)
        return cache, table

    def attend(self, isa: str | None = None, page_size: int = 256, threads: int = 1) -> Floats:
        cache, table = self.cache(page_size)
        return attended(cache, self.q, [(len(self.q), self.start, table)], self.window, threads, isa)

    def exact(self) -> Floats:
        q, k, v = (torch.from_numpy(x).double() for x in (self.q, self.k, self.v))
        return float_attend(q, k, v, self.start, self.window).numpy()


def attended(
    cache: Any,
    q: Floats,
    parts: list[tuple[int, int, np.ndarray]],
    window: int | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> Floats:
    spans = np.array([[tokens, start] for tokens, start, _ in parts])
    tables = np.full((len(parts), max(len(table) for *_, table in parts)), -1)
    for row, (*_, table) in zip(tables, parts, strict=True):
        row[: len(table)] = table
    out = np.full_like(q, 7.0)
    cache.attend(out, q, spans, tables, window, threads, isa)
    return out


def exp2(x: Floats) -> Floats:
    return reference.exp2(torch.from_numpy(x)).numpy()


def sum_by_halves(x: Floats) -> Floats:
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


class Partial:
    """The partial softmax of some keys for each row, merged as in README.md in faquant/kernels."""

    def __init__(self, rows: int, dim: int) -> None:
        self.top, self.sum = np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32)
        self.out = np.zeros((rows, dim), np.float32)

    def merge(self, top: Floats, total: Floats, out: Floats) -> None:
        greatest = np.maximum(self.top, top)
        finite = np.where(greatest == -np.inf, np.float32(0), greatest)
        old, added = exp2(self.top - finite), exp2(top - finite)
        self.top = greatest
        self.sum = self.sum * old + total * added
        self.out = self.out * old[:, None] + out * added[:, None]


def defined(sample: Sample) -> Floats:
    """The definition, operation by operation."""
    num_heads, kv_heads, dim = sample.heads
    group, tokens = num_heads // kv_heads, len(sample.q)
    result = np.empty_like(sample.q)
    positions = np.repeat(np.arange(sample.start, sample.start + tokens), group)[:, None]
    window = sample.window or len(sample.k)
    for head in range(kv_heads):
        q = sample.q[:, head * group : (head + 1) * group].reshape(-1, dim)
        q = q * np.float32(1.4426950408889634 / math.sqrt(dim))
        total = Partial(len(q), dim)
        for split in range(0, len(sample.k), SPLIT):
            part = Partial(len(q), dim)
            for key in range(split, min(split + SPLIT, len(sample.k)), TILE):
                k, v = (np.zeros((TILE, dim), np.float32) for _ in range(2))
                count = min(TILE, len(sample.k) - key)
                k[:count], v[:count] = sample.k[key : key + count, head], sample.v[key : key + count, head]
                scores = fused.linear(q, k, None)
                keys = np.arange(key, key + TILE)
                scores[(keys > positions) | (keys <= positions - window)] = -np.inf
                top = scores.max(-1)
                p = exp2(scores - np.where(top == -np.inf, np.float32(0), top)[:, None])
                part.merge(top, sum_by_halves(p), fused.linear(p, np.ascontiguousarray(v.T), None))
            total.merge(part.top, part.sum, part.out)
        result[:, head * group : (head + 1) * group] = (total.out / total.sum[:, None]).reshape(tokens, group, dim)
    return result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("heads", "tokens", "start", "window"),
    [
        ((3, 1, 16), 1, 0, None),
        ((4, 2, 12), 5, 125, None),
        ((2, 2, 20), 2, 700, None),
        ((6, 2, 64), 9, 300, 70),
        ((1, 1, 80), 3, 1030, 129),
    ],
)
def test_bits(isa: str, heads: tuple[int, int, int], tokens: int, start: int, window: int | None) -> None:
    sample = Sample(heads, tokens, start, window)
    np.testing.assert_array_equal(sample.attend(isa), defined(sample))


@pytest.mark.parametrize("dim", [1, 7, 16, 64, 80, 128, 1024])
@pytest.mark.parametrize("group", [1, 3, 16])
def test_heads(dim: int, group: int) -> None:
    sample = Sample((2 * group, 2, dim), 5, 150)
    out = sample.attend()
    np.testing.assert_allclose(out, sample.exact(), atol=1e-5, rtol=0)
    for isa in ISAS[1:]:
        np.testing.assert_array_equal(sample.attend(isa), out)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 1000, 2049])
@pytest.mark.parametrize("window", [None, 1, 100, 600])
def test_lengths_and_windows(length: int, window: int | None) -> None:
    for tokens in {1, min(length, 40)}:
        sample = Sample((3, 1, 16), tokens, length - tokens, window)
        np.testing.assert_allclose(sample.attend(), sample.exact(), atol=2e-6, rtol=0)


def test_a_prompt() -> None:
    sample = Sample((6, 2, 16), 700, 0)
    out = sample.attend()
    np.testing.assert_allclose(out, sample.exact(), atol=2e-6, rtol=0)
    for threads in (2, 3):
        np.testing.assert_array_equal(sample.attend(threads=threads), out)
    for isa in ISAS[1:-1]:
        np.testing.assert_array_equal(sample.attend(isa), out)


@pytest.mark.parametrize("window", [None, 90])
@pytest.mark.parametrize("page_size", [1, 16, 100, 128, 384])
def test_pages_of_any_size(page_size: int, window: int | None) -> None:
    for heads in ((2, 1, 16), (2, 1, 12)):
        sample = Sample(heads, 30, 500, window)
        np.testing.assert_array_equal(sample.attend(page_size=page_size), sample.attend())


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 199), max_size=4),
    start=st.sampled_from([0, 100, 511]),
    window=st.sampled_from([None, 33, 300]),
    threads=st.integers(1, 3),
)
def test_chunks(cuts: set[int], start: int, window: int | None, threads: int) -> None:
    sample = Sample((4, 2, 16), 200, start, window)
    cache, table = sample.cache()
    whole = attended(cache, sample.q, [(200, start, table)], window)
    bounds = [0, *sorted(cuts), 200]
    for first, last in itertools.pairwise(bounds):
        out = attended(cache, sample.q[first:last], [(last - first, start + first, table)], window, threads)
        np.testing.assert_array_equal(out, whole[first:last])


def test_a_batch() -> None:
    samples = [Sample((4, 2, 16), tokens, start) for tokens, start in ((1, 700), (30, 0), (5, 130))]
    size, heads = 128, (2, 16)
    k, v = (np.full((12, size, *heads), np.nan, np.float32) for _ in range(2))
    cache = _C.FloatCache(heads=4, k=k, v=v)
    free, parts = iter(np.random.default_rng(0).permutation(12)), []
    for sample in samples:
        table = np.array([next(free) for _ in range(-(-len(sample.k) // size))])
        keys = np.arange(len(sample.k))
        cache.append(sample.k, sample.v, table[keys // size] * size + keys % size)
        parts.append((len(sample.q), sample.start, table))
    q = np.concatenate([sample.q for sample in samples])
    for threads in (1, 2):
        expected = np.concatenate([sample.attend() for sample in samples])
        np.testing.assert_array_equal(attended(cache, q, parts, None, threads), expected)


def test_torch_tensors() -> None:
    sample = Sample((4, 2, 16), 3, 20)
    k, v = torch.zeros(1, 32, 2, 16), torch.zeros(1, 32, 2, 16)
    cache = _C.FloatCache(heads=4, k=k, v=v)
    cache.append(torch.from_numpy(sample.k), torch.from_numpy(sample.v), torch.arange(23))
    assert torch.equal(k[0, :23], torch.from_numpy(sample.k))
    assert torch.equal(v[0, :23], torch.from_numpy(sample.v))
    out = torch.empty(3, 4, 16)
    spans, tables = torch.tensor([[3, 20]]), torch.tensor([[0]])
    cache.attend(out, torch.from_numpy(sample.q), spans, tables, None, 1)
    np.testing.assert_array_equal(out.numpy(), sample.attend())


def store(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "multiple of k's"),
        ({"k": store(2, 4, 16)}, "four dimensions"),
        ({"k": store(2, 128, 2, 1025)}, "1 to 1024 channels"),
        ({"k": store(2, 0, 2, 16)}, "hold a token"),
        ({"v": store(2, 128, 2, 8)}, "v must be"),
        ({"v": np.zeros((2, 128, 2, 16))}, "v must be .* float32"),
        ({"k": store(2, 128, 2, 32)[..., ::2]}, "k must be a contiguous"),
    ],
)
def test_wrong_stores_are_refused(wrong: dict[str, Any], message: str) -> None:
    good = {"heads": 4, "k": store(2, 128, 2, 16), "v": store(2, 128, 2, 16)}
    _C.FloatCache(**good)
    with pytest.raises(ValueError, match=message):
        _C.FloatCache(**{**good, **wrong})


@pytest.mark.parametrize("slot", [-1, 256])
def test_a_slot_beyond_the_cache_is_refused(slot: int) -> None:
    cache = _C.FloatCache(heads=4, k=store(2, 128, 2, 16), v=store(2, 128, 2, 16))
    with pytest.raises(ValueError, match="slot is not in the cache"):
        cache.append(store(1, 2, 16), store(1, 2, 16), np.array([slot]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spans": np.array([[1, 0]])}, "as many tokens as there are rows"),
        ({"spans": np.array([[2, -1]])}, "A span must have tokens"),
        ({"spans": np.array([[2, 127]])}, "block_table is too short"),
        ({"block_tables": np.array([[2]])}, "page is not in the cache"),
        ({"block_tables": np.array([0])}, "block_tables must have 2 dimensions"),
        ({"block_tables": np.array([[0], [0]])}, "tokens_starts must be"),
        ({"spans": np.array([[2, 0]], np.int32)}, "tokens_starts must be .* int64"),
        ({"window": 0}, "window must be positive"),
        ({"q": store(2, 2, 16)}, "q must be"),
        ({"out": store(3, 4, 16)}, "out must be"),
    ],
)
def test_wrong_calls_are_refused(wrong: dict[str, Any], message: str) -> None:
    cache = _C.FloatCache(heads=4, k=store(2, 128, 2, 16), v=store(2, 128, 2, 16))
    good = {
        "out": store(2, 4, 16),
        "q": store(2, 4, 16),
        "spans": np.array([[2, 0]]),
        "block_tables": np.array([[0]]),
        "window": None,
        "threads": 1,
    }
    cache.attend(**good)
    with pytest.raises(ValueError, match=message):
        cache.attend(**{**good, **wrong})
