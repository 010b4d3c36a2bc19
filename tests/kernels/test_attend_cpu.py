"""The C++ attention has the bits of the reference, for every instruction set."""

import math
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant.kernels import isa as cpu
from faquant.kernels import pages as cpu_pages
from faquant.kernels import quantizers, reference
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import MAP_BLOCK, P_LEVELS, AttentionScheme
from oracles.packing import store
from oracles.pages import poisoned
from oracles.schemes import SCALES, make_scheme
from oracles.threads import set_threads

ISAS = cpu.available_isas()
TILE = 128
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000, 2049, 4200]


class Sample:
    """Random q, and a cache of `length` tokens, poisoned before `oldest` and from `end` on."""

    def __init__(self, scheme: AttentionScheme, tokens: int, start: int, window: int | None = None, seed: int = 0):
        self.scheme, self.start, self.window = scheme, start, window
        generator = torch.Generator().manual_seed(seed)
        end = start + tokens
        heads, kv_heads, dim = scheme.num_heads, scheme.num_kv_heads, scheme.head_dim
        self.q = torch.randn(tokens, heads, dim, generator=generator) * 3
        self.k8, self.v8 = (
            torch.randint(-128, 128, (end + 3, kv_heads, dim), dtype=torch.int8, generator=generator) for _ in range(2)
        )
        self.k_scale, self.v_scale = (
            (torch.rand(end + 3, kv_heads, generator=generator) * 0.03).half() if static is None else None
            for static in (scheme.k_scale, scheme.v_scale)
        )
        unseen = torch.ones(end + 3, dtype=torch.bool)
        unseen[0 if window is None else max(0, start - window + 1) : end] = False
        for values in (self.k8, self.v8):
            values[unseen] = 0x7F
        for token_scales in (self.k_scale, self.v_scale):
            if token_scales is not None:
                token_scales[unseen] = math.nan

    def expected(self) -> Tensor:
        return reference.attend(
            self.q, self.k8, self.v8, self.k_scale, self.v_scale, self.scheme, self.start, self.window
        )

    def attend(self, isa: str, threads: int = 1) -> Tensor:
        """With a cache of shuffled pages that was poisoned before."""
        pages = poisoned(self.scheme, -(-len(self.k8) // 256) + 2, 256, isa)
        table = torch.randperm(pages.num_pages, generator=torch.Generator().manual_seed(1))
        store(pages, table, self.k8, self.v8, self.k_scale, self.v_scale)
        set_threads(threads)
        return pages.attend(self.q, Spans.of([(len(self.q), self.start, table)]), self.window)

    def assert_same_bits(self, isas: list[str] = ISAS, threads: int = 1) -> None:
        expected = self.expected()
        assert expected.isfinite().all()
        for isa in isas:
            assert torch.equal(self.attend(isa, threads), expected), isa


def test_the_tile_is_the_reference_s() -> None:
    assert reference.TILE == TILE


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("levels", P_LEVELS.values())
@pytest.mark.parametrize(("group", "dim"), [(1, 64), (3, 80), (4, 96), (8, 128), (3, 256), (2, 12), (5, 7)])
def test_any_scheme(scales: str, levels: int, group: int, dim: int) -> None:
    for quantized_sum in {False, scales != "token"}:
        scheme = make_scheme(scales, 2 * group, 2, dim, p_levels=levels, quantized_sum=quantized_sum)
        Sample(scheme, 5, 150, seed=group).assert_same_bits()


@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_at_the_start_and_inside(scales: str, length: int) -> None:
    scheme = make_scheme(scales, 3, 1, 16)
    for tokens in {min(length, 130), 1}:
        Sample(scheme, tokens, length - tokens, seed=length).assert_same_bits()


@pytest.mark.parametrize("scales", ["token", "head"])
@pytest.mark.parametrize("window", [1, 5, 100, 128, 200, 2100])
@pytest.mark.parametrize("start", [0, 127, 300, 2300])
def test_windows(scales: str, window: int, start: int) -> None:
    Sample(make_scheme(scales, 6, 2, 16), 140, start, window).assert_same_bits()


@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
@pytest.mark.parametrize("window", [None, 150, 1500])
@pytest.mark.parametrize("start", [0, 900, 2000, 3500])
def test_a_map_of_each_block(scales: str, window: int | None, start: int) -> None:
    """Three maps, the last one for all later positions; the rows can be in the block of any of them."""
    generator = torch.Generator().manual_seed(start)
    center = torch.randn(3, 2, 24, generator=generator)
    equalizer = torch.rand(3, 2, 24, generator=generator) + 0.5
    scheme = make_scheme(scales, 6, 2, 24, k_center=center, k_equalizer=equalizer)
    sample = Sample(scheme, 140, start, window)
    sample.assert_same_bits()
    other = Sample(replace(scheme, k_center=center[:1], k_equalizer=equalizer[:1]), 140, start, window)
    assert torch.equal(sample.expected(), other.expected()) == (start + 140 <= MAP_BLOCK)


@pytest.mark.parametrize("position", [640, 896, 1024, 2688, 6784, 131072 - 384])
@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
def test_a_sequence_that_starts_at_a_position_is_the_end_of_a_longer_one(scales: str, position: int) -> None:
    """The window ends in the sequence, so that the longer one sees no other keys. Most cross a block's border."""
    generator = torch.Generator().manual_seed(position)
    center, equalizer = (torch.rand(8, 2, 24, generator=generator) + 0.5 for _ in range(2))
    scheme = make_scheme(scales, 6, 2, 24, k_equalizer=equalizer)
    whole = Sample(scheme, 140, position + 300, window=200)
    part = _from(position, whole)
    assert torch.equal(part.expected(), whole.expected())
    part.assert_same_bits()
    # The scores' bias is relative to the first key's center, here another one. The softmax cancels the difference, up
    # to steps of P.
    whole.scheme = replace(scheme, k_center=center)
    part = _from(position, whole)
    torch.testing.assert_close(part.expected(), whole.expected(), rtol=0, atol=1e-3)
    part.assert_same_bits()


def _from(position: int, whole: Sample) -> Sample:
    """The same queries and cache, without the tokens before `position`."""
    part = copy(whole)
    part.scheme, part.start = whole.scheme.starting_at(position), whole.start - position
    part.k8, part.v8 = whole.k8[position:], whole.v8[position:]
    part.k_scale, part.v_scale = (x if x is None else x[position:] for x in (whole.k_scale, whole.v_scale))
    return part


def test_a_sequence_does_not_start_inside_a_tile() -> None:
    scheme = make_scheme("token", 2, 1, 16, k_center=torch.zeros(2, 1, 16))
    for position in (1, 64, 1000):
        with pytest.raises(ValueError, match="multiple of 128"):
            scheme.starting_at(position)


@pytest.mark.parametrize("levels", P_LEVELS.values())
@pytest.mark.parametrize("scales", ["token", "head"])
@pytest.mark.parametrize("q8", [-128, 127])
@pytest.mark.parametrize("k8", [-128, 127])
@pytest.mark.parametrize("v8", [-128, 127])
def test_extreme_integers(levels: int, scales: str, q8: int, k8: int, v8: int) -> None:
    """Equal scores make all P the largest, too: each sum is as far from zero as possible."""
    for dim in (16, 1024):
        scheme = make_scheme(scales, 2, 1, dim, p_levels=levels, q_scale=torch.full((2, 1), 1e-3))
        sample = Sample(scheme, 2, 127)
        sample.q.fill_(q8 * 1e-3)
        sample.k8[:129], sample.v8[:129] = k8, v8
        for token_scales in (sample.k_scale, sample.v_scale):
            if token_scales is not None:
                token_scales[:129] = 0.01
        quantized, _ = quantizers.quantize_q(sample.q, scheme)
        assert (quantized == q8).all()
        sample.assert_same_bits()


@settings(max_examples=60)
@given(data=st.data())
def test_any_small_shape(data: st.DataObject) -> None:
    draw = data.draw
    scales = draw(st.sampled_from(SCALES))
    kv_heads, group, dim = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    scheme = make_scheme(
        scales,
        group * kv_heads,
        kv_heads,
        dim,
        p_levels=draw(st.sampled_from(list(P_LEVELS.values()))),
        quantized_sum=scales != "token" and draw(st.booleans()),
    )
    window = draw(st.none() | st.integers(1, 400))
    sample = Sample(scheme, draw(st.integers(1, 70)), draw(st.integers(0, 300)), window, draw(st.integers(0, 2**20)))
    sample.assert_same_bits()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("tokens", "start"), [(300, 100), (1, 9000), (3, 6100)])
def test_threads_change_no_bit(isa: str, tokens: int, start: int) -> None:
    """Enough work for three threads: blocks that do not divide the tokens, and splits that several threads take."""
    sample = Sample(make_scheme("token", 9, 3, 64), tokens, start)
    expected = sample.expected()
    for threads in (1, 2, 3):
        assert torch.equal(sample.attend(isa, threads), expected)


@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
def test_at_128k_positions(scales: str) -> None:
    """A decode step and a chunk at the end of the longest contexts."""
    scheme = make_scheme(scales, 2, 1, 16)
    for tokens in (1, 20):
        Sample(scheme, tokens, 131_072 - tokens).assert_same_bits([ISAS[0]], threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_scales_below_the_normal_halves_where_the_process_flushes_subnormals(isa: str) -> None:
    """Some applications set this for their threads; V with scales of 1e-6 became zero."""
    scheme = AttentionScheme(4, 2, 16)
    k, v = (torch.randn(200, 2, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    q, places = torch.randn(1, 4, 16), torch.arange(200)
    set_threads(1)
    outs = []
    for flush in (False, True):
        pages = Int8Pages(scheme, 2, 128, isa)
        torch.set_flush_denormal(flush)
        try:
            pages.append(k * 1e-4, v * 1e-4, places, places)
            outs.append(pages.attend(q, Spans.of([(1, 199, torch.arange(2))])))
        finally:
            torch.set_flush_denormal(False)
    assert outs[0].abs().max() > 1e-5
    assert torch.equal(*outs)


@pytest.mark.parametrize("isa", ISAS)
def test_more_heads_in_a_group_than_rows_in_a_block(isa: str) -> None:
    Sample(make_scheme("token", 300, 1, 16), 3, 130).assert_same_bits([isa])


@pytest.mark.parametrize("isa", ISAS)
def test_splits_of_another_size(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(make_scheme("token", 3, 1, 16, map_block=128), 10, 600)
    whole = sample.expected()
    for module in (reference, cpu_pages):
        monkeypatch.setattr(module, "SPLIT", 256)
    assert not torch.equal(sample.expected(), whole)
    sample.assert_same_bits([isa])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
def test_sequences_of_any_length_together_as_alone(isa: str, scales: str) -> None:
    scheme = make_scheme(scales, 6, 2, 24)
    generator = torch.Generator().manual_seed(3)
    pages = poisoned(scheme, 60, 128, isa)
    free = torch.randperm(60, generator=generator).tolist()
    parts, queries, alone = [], [], []
    for tokens, start in ((1, 0), (1, 2500), (70, 0), (1, 127), (5, 300), (1, 1)):
        sample = Sample(scheme, tokens, start, seed=start)
        table = torch.tensor([free.pop() for _ in range(-(-len(sample.k8) // 128))])
        store(pages, table, sample.k8, sample.v8, sample.k_scale, sample.v_scale)
        parts.append((tokens, start, table))
        queries.append(sample.q)
        alone.append(sample.expected())
    for threads in (1, 3):
        set_threads(threads)
        assert torch.equal(pages.attend(torch.cat(queries), Spans.of(parts)), torch.cat(alone))


def test_exp2_and_the_rounding_of_p_at_every_magnitude() -> None:
    """One key of a tile far below the other: all exponents of p down to those that are zero."""
    sample = Sample(make_scheme("head", 1, 1, 1, p_levels=127), 1, 128)
    sample.k8[:129] = 0
    sample.k8[:128, 0, 0] = torch.arange(128)
    for scale in torch.logspace(-4, 2, 100):
        sample.scheme = replace(sample.scheme, q_scale=scale.view(1, 1))
        sample.q.fill_(float(127 * scale))
        sample.assert_same_bits()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": torch.zeros(2, 4, 9)}, r"q must be a contiguous array of float32 \[2, 4, 8\]"),
        ({"q": torch.zeros(2, 4, 8).double()}, "q must be a contiguous"),
        ({"q": torch.zeros(3, 4, 8)}, "as many tokens"),
        ({"spans": Spans(torch.tensor([[2, 127]]), torch.tensor([[1]]))}, "block_table is too short"),
        ({"spans": Spans(torch.tensor([[0, 3]]), torch.tensor([[1]]))}, "must have tokens"),
        ({"spans": Spans(torch.tensor([[2, -1]]), torch.tensor([[1]]))}, "must have tokens"),
        ({"spans": Spans(torch.tensor([[2, 2**62]]), torch.tensor([[1]]))}, "too short"),
        ({"spans": Spans(torch.tensor([[2**62, 3]]), torch.tensor([[1]]))}, "too short"),
        ({"spans": Spans(torch.tensor([[2, 3]]), torch.tensor([[2]]))}, "page is not in the cache"),
        ({"spans": Spans(torch.tensor([[2, 3]]), torch.tensor([[-1]]))}, "page is not in the cache"),
        ({"spans": Spans(torch.tensor([[2, 3]]), torch.tensor([[1.0]]))}, "block_tables must be"),
        ({"spans": Spans(np.array([[2, 3]], np.int32), np.array([[1]]))}, "tokens_starts must be"),
        ({"spans": Spans(np.array([[2, 3, 0]])[:, :2].T, np.array([[1]]))}, "tokens_starts must be"),
        ({"spans": Spans(np.array([[2, 3]]), np.array([[1]], np.int32))}, "block_tables must be"),
        ({"spans": Spans(np.array([[2, 3]]), np.array([1]))}, "block_tables must have 2 dimensions"),
        ({"spans": Spans(np.array([[2, 3]]), np.zeros((1, 4), np.int64)[:, ::2])}, "block_tables must be"),
        ({"q": np.zeros((2, 4, 8))}, "q must be a contiguous"),
        ({"window": 0}, "window"),
    ],
)
def test_wrong_operands_of_attend_are_refused(wrong: dict[str, Any], message: str) -> None:
    pages = Int8Pages(make_scheme("token", 4, 2, 8), 2, 128)
    good: dict[str, Any] = {
        "q": torch.zeros(2, 4, 8),
        "spans": Spans(torch.tensor([[2, 3]]), torch.tensor([[1]])),
        "window": None,
    }
    pages.attend(**good)
    with pytest.raises(ValueError, match=message):
        pages.attend(**{**good, **wrong})
