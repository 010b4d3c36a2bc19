"""The C++ attention has the bits of the reference, for every instruction set."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from faquant import _C
from faquant.kernels import cpu, reference
from faquant.kernels.scheme import MAP_BLOCK, AttentionScheme

ISAS = cpu.available_isas()
SCALES = ["token", "head", "channel", "channel, zero points"]
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1000, 2049, 4200]


def make_scheme(scales: str, heads: int, kv_heads: int, dim: int, **more: Any) -> AttentionScheme:
    if scales == "token":
        return AttentionScheme(heads, kv_heads, dim, **more)
    width = 1 if scales == "head" else dim
    table = torch.linspace(0.02, 0.03, kv_heads * width).view(kv_heads, width)
    if scales == "channel, zero points":
        more["v_offset"] = torch.linspace(-90, 100, kv_heads * width).round().view(kv_heads, width)
    return AttentionScheme(heads, kv_heads, dim, k_scale=table, v_scale=1.7 * table, **more)


class Sample:
    """Random q, and a cache of `length` tokens, of which those before `oldest` and from `end` on are poison."""

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

    def attend(self, kernel: reference.Kernel | None = None) -> Tensor:
        return reference.attend(
            self.q, self.k8, self.v8, self.k_scale, self.v_scale, self.scheme, self.start, self.window, kernel
        )

    def assert_same_bits(self, isas: list[str] = ISAS, threads: int = 1) -> None:
        expected = self.attend()
        assert expected.isfinite().all()
        for isa in isas:
            assert torch.equal(self.attend(kernel(isa, threads)), expected), isa


def kernel(isa: str, threads: int = 1, split: int = reference.SPLIT) -> reference.Kernel:
    return partial(cpu.attend, split=split, threads=threads, isa=isa)


def test_the_tile_is_the_reference_s() -> None:
    assert cpu.TILE == reference.TILE


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("levels", [127, 255, 32767])
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
    """Three maps, the last for everything behind it; the rows' own block may be any of them."""
    generator = torch.Generator().manual_seed(start)
    center = torch.randn(3, 2, 24, generator=generator)
    equalizer = torch.rand(3, 2, 24, generator=generator) + 0.5
    scheme = make_scheme(scales, 6, 2, 24, k_center=center, k_equalizer=equalizer)
    sample = Sample(scheme, 140, start, window)
    sample.assert_same_bits()
    other = Sample(replace(scheme, k_center=center[:1], k_equalizer=equalizer[:1]), 140, start, window)
    assert torch.equal(sample.attend(), other.attend()) == (start + 140 <= MAP_BLOCK)


@pytest.mark.parametrize("levels", [127, 255, 32767])
@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
@pytest.mark.parametrize("q8", [-128, 127])
@pytest.mark.parametrize("k8", [-128, 127])
@pytest.mark.parametrize("v8", [-128, 127])
def test_extreme_integers(levels: int, scales: str, q8: int, k8: int, v8: int) -> None:
    """Equal scores make all P the largest, too: each sum is as far from zero as it can be."""
    for dim in (16, 1024):
        scheme = make_scheme(scales, 2, 1, dim, p_levels=levels)
        q, k, v = (torch.full((n, h, dim), x, dtype=torch.int8) for n, h, x in ((2, 2, q8), (129, 1, k8), (129, 1, v8)))
        scale = torch.full((129, 1), 0.01).half() if scales == "token" else None
        queries = reference.MappedQueries(q[None], torch.full((1, 2, 2), 1e-3), torch.zeros(1, 2, 2))
        args = (queries, k, v, scale, scale, scheme, 127, None)
        expected = reference.attend_int8(*args)
        for isa in ISAS:
            assert torch.equal(kernel(isa)(*args), expected)


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
        p_levels=draw(st.sampled_from([127, 255, 32767])),
        quantized_sum=scales != "token" and draw(st.booleans()),
    )
    window = draw(st.none() | st.integers(1, 400))
    sample = Sample(scheme, draw(st.integers(1, 70)), draw(st.integers(0, 300)), window, draw(st.integers(0, 2**20)))
    sample.assert_same_bits()


@pytest.mark.parametrize("isa", ISAS)
def test_threads_change_no_bit(isa: str) -> None:
    """Enough work for three threads, in blocks that do not divide the tokens."""
    sample = Sample(make_scheme("token", 9, 3, 64), 300, 100)
    expected = sample.attend()
    for threads in (1, 2, 3):
        assert torch.equal(sample.attend(kernel(isa, threads)), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_more_heads_in_a_group_than_rows_in_a_block(isa: str) -> None:
    Sample(make_scheme("token", 300, 1, 16), 3, 130).assert_same_bits([isa])


@pytest.mark.parametrize("isa", ISAS)
def test_splits_of_another_size(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(make_scheme("token", 3, 1, 16), 10, 600)
    whole = sample.attend()
    monkeypatch.setattr(reference, "SPLIT", 256)
    monkeypatch.setattr(reference, "MAP_BLOCK", 128)
    expected = sample.attend()
    assert not torch.equal(expected, whole)
    assert torch.equal(sample.attend(kernel(isa, split=256)), expected)


def test_exp2_and_the_rounding_of_p_at_every_magnitude() -> None:
    """One key of a tile far below the other: all exponents of p down to those that are zero."""
    scheme = make_scheme("head", 1, 1, 1, p_levels=127, quantized_sum=False)
    k8 = torch.zeros(129, 1, 1, dtype=torch.int8)
    k8[:128, 0, 0] = torch.arange(128)
    q8 = torch.full((1, 1, 1), 127, dtype=torch.int8)
    v8 = torch.randint(-128, 128, (129, 1, 1), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    for scale in torch.logspace(-6, 0, 150):
        queries = reference.MappedQueries(q8[None], scale.view(1, 1, 1), torch.zeros(1, 1, 1))
        args = (queries, k8, v8, None, None, scheme, 128, None)
        expected = reference.attend_int8(*args)
        for isa in ISAS:
            assert torch.equal(kernel(isa)(*args), expected)


GOOD = {
    "out": torch.empty(2, 4, 8),
    "q": torch.zeros(1, 2, 4, 8, dtype=torch.int8),
    "q_scale": torch.zeros(1, 2, 4),
    "q_bias": torch.zeros(1, 2, 4),
    "k": torch.zeros(5, 2, 8, dtype=torch.int8),
    "v": torch.zeros(5, 2, 8, dtype=torch.int8),
    "k_scale": torch.zeros(5, 2),
    "v_scale": torch.zeros(5, 2),
    "v_step": None,
    "v_offset": None,
    "start": 3,
    "window": None,
    "split": 2048,
    "map_block": 1024,
    "p_levels": 255,
    "quantized_sum": False,
    "threads": 1,
    "isa": None,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": torch.zeros(1, 2, 4, 8)}, "q must be a contiguous array of int8"),
        ({"q": torch.zeros(2, 4, 8, dtype=torch.int8)}, "four dimensions"),
        ({"q": torch.zeros(1, 2, 8, 4, dtype=torch.int8).mT}, "q must be a contiguous"),
        ({"q": torch.zeros(1, 2, 3, 8, dtype=torch.int8)}, "multiple"),
        ({"q_scale": torch.zeros(1, 2, 3)}, r"q_scale must be a contiguous array of float32 \[1, 2, 4\]"),
        ({"k": torch.zeros(4, 2, 8, dtype=torch.int8)}, "start"),
        ({"v": torch.zeros(4, 2, 8, dtype=torch.int8)}, r"v must be .* \[5, 2, 8\] or longer"),
        ({"v": torch.zeros(5, 2, 9, dtype=torch.int8)}, "v must be"),
        ({"k_scale": torch.zeros(5, 2).half()}, "k_scale must be"),
        ({"v_scale": torch.zeros(2, 5).T}, "v_scale must be"),
        ({"v_scale": None}, "v_step"),
        ({"v_scale": None, "v_step": torch.zeros(2, 1)}, "v_step must be"),
        ({"v_offset": torch.zeros(2, 8)}, "v_step"),
        ({"quantized_sum": True}, "v_step"),
        ({"q_bias": torch.zeros(2, 2, 4)}, "q_bias must be"),
        ({"map_block": 100}, "map_block"),
        ({"out": torch.empty(2, 4, 9)}, "out must be"),
        ({"start": -1}, "start"),
        ({"start": 2**62}, "start"),
        ({"window": 0}, "window"),
        ({"split": 100}, "split"),
        ({"p_levels": 256}, "p_levels"),
    ],
)
def test_wrong_operands_are_refused(wrong: dict[str, Any], message: str) -> None:
    _C.attend(**GOOD)
    with pytest.raises(ValueError, match=message):
        _C.attend(**{**GOOD, **wrong})
