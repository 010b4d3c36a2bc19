"""Pages of bfloat16: float attention over K and V rounded to bfloat16, with the same bits everywhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import isa as cpu
from faquant.kernels.pages import BFloat16Pages, Spans
from faquant.kernels.torch_backend import float_attend
from oracles.threads import set_threads

ISAS = cpu.available_isas()
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000, 2049, 4200]
PAGE_SIZE = 256


def rounded(x: Tensor) -> Tensor:
    """The stored values: rounded to bfloat16, halves to even; 0 below 2^-62."""
    return torch.where(x.bfloat16().abs() < 2.0**-62, 0.0, x.bfloat16().float())


def oracle(q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None) -> Tensor:
    return float_attend(q.double(), rounded(k).double(), rounded(v).double(), start, window)


class Sample:
    """Random q, and a sequence of K and V up to its end."""

    def __init__(
        self,
        heads: tuple[int, int, int],
        tokens: int,
        start: int,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        self.heads, self.start, self.window = heads, start, window
        num_heads, kv_heads, dim = heads
        generator = torch.Generator().manual_seed(seed)
        self.q = torch.randn(tokens, num_heads, dim, generator=generator) * 2
        self.k, self.v = (torch.randn(start + tokens, kv_heads, dim, generator=generator) for _ in range(2))

    def pages(self, isa: str | None = None) -> tuple[BFloat16Pages, Tensor]:
        """Shuffled pages, poisoned outside of what the queries see, and the sequence's block table."""
        end = len(self.k)
        pages = BFloat16Pages(*self.heads, -(-end // PAGE_SIZE) + 2, PAGE_SIZE, isa)
        poison(pages)
        table = torch.randperm(pages.num_pages, generator=torch.Generator().manual_seed(1))
        seen = torch.arange(0 if self.window is None else max(0, self.start - self.window + 1), end)
        pages.append(self.k[seen], self.v[seen], slots(table, seen), seen)
        return pages, table

    def attend(self, isa: str | None = None, threads: int = 1) -> Tensor:
        set_threads(threads)
        pages, table = self.pages(isa)
        return pages.attend(self.q, Spans.of([(len(self.q), self.start, table)]), self.window)

    def check(self) -> None:
        """Close to the oracle, and the same bits on every instruction set."""
        out = self.attend(ISAS[0])
        expected = oracle(self.q, self.k, self.v, self.start, self.window)
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=0)
        for isa in ISAS[1:]:
            assert torch.equal(self.attend(isa), out), isa


def poison(pages: BFloat16Pages) -> None:
    """Bytes of 0xff are NaN."""
    for store in (pages.k, pages.v):
        store.view(np.uint8).fill(0xFF)


def slots(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE


@pytest.mark.parametrize("dim", [1, 7, 12, 16, 64, 80, 96, 128, 256, 1024])
@pytest.mark.parametrize("group", [1, 3, 4, 8, 16])
def test_any_heads(group: int, dim: int) -> None:
    Sample((2 * group, 2, dim), 5, 150, seed=group).check()


@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_at_the_start_and_inside(length: int) -> None:
    for tokens in {min(length, 130), 1}:
        Sample((3, 1, 16), tokens, length - tokens, seed=length).check()


@pytest.mark.parametrize("window", [1, 5, 100, 127, 128, 200, 2100])
@pytest.mark.parametrize("start", [0, 127, 300, 2301])
def test_windows(window: int, start: int) -> None:
    Sample((6, 2, 16), 140, start, window).check()


@settings(max_examples=60)
@given(data=st.data())
def test_any_small_shape(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads, group, dim = draw(st.integers(1, 3)), draw(st.integers(1, 17)), draw(st.integers(1, 40))
    window = draw(st.none() | st.integers(1, 400))
    heads = (group * kv_heads, kv_heads, dim)
    Sample(heads, draw(st.integers(1, 70)), draw(st.integers(0, 300)), window, draw(st.integers(0, 2**20))).check()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("tokens", "start"), [(300, 100), (1, 9000), (3, 6100)])
def test_threads_change_no_bit(isa: str, tokens: int, start: int) -> None:
    sample = Sample((9, 3, 64), tokens, start)
    alone = sample.attend(isa)
    for threads in (2, 3):
        assert torch.equal(sample.attend(isa, threads), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [None, 1, 70])
def test_chunks_change_no_bit(isa: str, window: int | None) -> None:
    sample = Sample((4, 2, 24), 2300, 0, window)
    whole = sample.attend(isa)
    pages = BFloat16Pages(4, 2, 24, 12, PAGE_SIZE, isa)
    poison(pages)
    table, start = torch.randperm(12), 0
    for end in (1, 2, 127, 130, 700, 2047, 2049, 2299, 2300):
        some = torch.arange(start, end)
        pages.append(sample.k[some], sample.v[some], slots(table, some), some)
        out = pages.attend(sample.q[some], Spans.of([(len(some), start, table)]), window)
        assert torch.equal(out, whole[some])
        start = end


@pytest.mark.parametrize("isa", ISAS)
def test_sequences_together_as_alone(isa: str) -> None:
    pages = BFloat16Pages(6, 2, 24, 40, PAGE_SIZE, isa)
    poison(pages)
    free = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    parts, queries, alone = [], [], []
    for tokens, start in ((1, 0), (1, 2500), (70, 0), (1, 127), (5, 300), (1, 1)):
        sample = Sample((6, 2, 24), tokens, start, seed=start)
        table = torch.tensor([free.pop() for _ in range(-(-len(sample.k) // PAGE_SIZE))])
        positions = torch.arange(len(sample.k))
        pages.append(sample.k, sample.v, slots(table, positions), positions)
        parts.append((tokens, start, table))
        queries.append(sample.q)
        alone.append(sample.attend(isa))
    for threads in (1, 3):
        set_threads(threads)
        assert torch.equal(pages.attend(torch.cat(queries), Spans.of(parts)), torch.cat(alone))


def test_later_tokens_change_no_bit() -> None:
    sample = Sample((4, 2, 16), 200, 0)
    pages, table = sample.pages()
    before = pages.attend(sample.q[:150], Spans.of([(150, 0, table)]))
    later = torch.arange(150, 200)
    pages.append(sample.k[later] * 50, sample.v[later] * 50, slots(table, later), later)
    assert torch.equal(pages.attend(sample.q[:150], Spans.of([(150, 0, table)])), before)


def test_factors_of_any_magnitude_have_the_same_bits() -> None:
    """Subnormal products would depend on whether they are fused."""
    generator = torch.Generator().manual_seed(0)
    for q_size, k_size in ((-70, 60), (60, -70), (-55, -55), (30, -30), (-126, 10), (-140, -140)):
        sample = Sample((3, 1, 32), 3, 200)
        exponents = torch.randint(-6, 6, sample.k.shape, generator=generator)
        sample.q *= 2.0**q_size
        sample.k *= 2.0 ** (k_size + exponents)
        sample.v *= 2.0 ** (exponents - 60)
        out = sample.attend(ISAS[0])
        assert out.isfinite().all()
        for isa in ISAS[1:]:
            assert torch.equal(sample.attend(isa), out), (isa, q_size, k_size)


@pytest.mark.parametrize("isa", ISAS)
def test_scores_far_apart(isa: str) -> None:
    """One key far above all others, in this tile, in another, in another split."""
    for place in (0, 130, 2100, 2199):
        sample = Sample((2, 1, 16), 1, 2199)
        sample.q = sample.q.abs()
        sample.k[place] = 300.0
        out = sample.attend(isa)
        torch.testing.assert_close(out, rounded(sample.v[place]).expand_as(out), rtol=1e-6, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_in_what_is_seen_is_not_lost(isa: str) -> None:
    sample = Sample((2, 1, 16), 1, 150)
    for bits in (0x7FC00000, 0x7FFFFFFF, 0x7F800001):
        sample.v[3, 0, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        assert sample.attend(isa).isnan().sum() == 2
        other = Sample((2, 1, 16), 1, 150)
        other.q[0, 1] = sample.v[3, 0, 5]
        assert other.attend(isa)[0, 0].isfinite().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [7, 12, 16, 64, 80, 96, 128, 256])
def test_append_stores_the_nearest_bfloat16(isa: str, dim: int) -> None:
    """Any slots; neighbors keep their bytes."""
    generator = torch.Generator().manual_seed(dim)
    k, v = (torch.randn(40, 2, dim, generator=generator) * 10.0 ** torch.randint(-25, 30, (40, 2, 1)) for _ in range(2))
    k[3], v[3] = 0.0, -0.0
    k[4, 0] = torch.linspace(1, 1 + 2**-5, dim)
    halves = torch.arange(0x3F808000, 0x3F808000 + dim * 0x8000, 0x8000, dtype=torch.int32)
    v[4, 1] = halves.view(torch.float32)
    k[5, 0, 0], k[5, 0, 1], v[5, 0, 0] = math.inf, -math.inf, 3.4e38
    places = torch.randperm(3 * PAGE_SIZE, generator=generator)[:40]
    pages = BFloat16Pages(4, 2, dim, 3, PAGE_SIZE, isa)
    poison(pages)
    pages.append(k, v, places, torch.arange(40))
    others = torch.ones(3 * PAGE_SIZE, dtype=torch.bool).index_fill(0, places, False)
    for found, given_ in zip(pages.read(torch.arange(3), 3 * PAGE_SIZE), (k, v), strict=True):
        assert np.array_equal(found[places], rounded(given_))
        assert np.isnan(found[others]).all()


def test_read_and_copy_page() -> None:
    sample = Sample((2, 2, 16), 1, 599)
    pages, table = sample.pages()
    for found, values in zip(pages.read(table, 600), (sample.k, sample.v), strict=True):
        assert np.array_equal(found, rounded(values))
    free = int(table[-1])
    pages.copy_page(int(table[0]), free)
    moved = torch.tensor([free, *table[1:]])
    for a, b in zip(pages.read(moved, 600), pages.read(table, 600), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("dim", [12, 64, 80])
def test_bytes_per_token_count_what_is_stored(dim: int) -> None:
    pages = BFloat16Pages(6, 3, dim, 2, 128)
    assert pages.bytes_per_token * 2 * 128 == pages.k.nbytes + pages.v.nbytes


@pytest.mark.parametrize("page_size", [0, -128, 64, 100, 129])
def test_a_page_holds_whole_tiles(page_size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 128"):
        BFloat16Pages(2, 1, 16, 2, page_size)


@pytest.mark.parametrize("heads", [(3, 2, 16), (2, 1, 0), (2, 1, 1025)])
def test_heads_that_no_kernel_has_are_refused(heads: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"heads must be|1 to 1024"):
        BFloat16Pages(*heads, 2, 128)
