"""Appending stores the bytes and scales that the quantizers and the C++ kernels store, and nothing else."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import quantizers
from faquant.kernels.cuda.append_bfloat16 import append_bfloat16
from faquant.kernels.cuda.attention_inputs import append
from faquant.kernels.cuda.cache import Int8Cache, SchemeTables
from faquant.kernels.pages import BFloat16Pages, Int8Pages
from faquant.kernels.scheme import AttentionScheme
from oracles.schemes import make_scheme

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
PAGES, PAGE_SIZE = 3, 256


def full_scheme(scales: str, kv_heads: int, dim: int) -> AttentionScheme:
    """Three maps, of 128 positions each, and rotations with signs."""
    block = dim & -dim
    more: dict[str, Any] = {"k_offset": torch.full((kv_heads, dim), 3.0)} if "zero" in scales else {}
    return make_scheme(
        scales,
        2 * kv_heads,
        kv_heads,
        dim,
        k_center=torch.randn(3, kv_heads, dim),
        k_equalizer=torch.rand(3, kv_heads, dim) + 0.5,
        rotation_block=block,
        rotation_sign=torch.randint(2, (dim,)) * 2.0 - 1,
        v_rotation_block=block,
        map_block=128,
        **more,
    )


def poisoned(scheme: AttentionScheme) -> Int8Cache:
    cache = Int8Cache.empty(scheme, PAGES, PAGE_SIZE, CPU)
    for x in stores(cache):
        x.fill_(0x7F if x.dtype == torch.int8 else math.nan)
    return cache


def stores(cache: Int8Cache) -> Iterator[Tensor]:
    return (x for x in (cache.k, cache.v, cache.k_scale, cache.v_scale) if x is not None)


def by_slot(cache: Int8Cache) -> list[Tensor | None]:
    """K and V [slots, Hkv, D] and their scales [slots, Hkv], as Int8Pages.read_bytes."""
    scales = [x if x is None else x.transpose(2, 3).flatten(0, 2) for x in (cache.k_scale, cache.v_scale)]
    return [cache.k.transpose(2, 3).flatten(0, 2), cache.v.permute(0, 1, 4, 2, 3).flatten(0, 2), *scales]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def parts_of_one_buffer(tokens: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """k and v of very different sizes, beside queries of NaN; zeros, and values beyond the largest scale."""
    qkv = torch.full((tokens, 4 * kv_heads, dim), math.nan)
    k, v = qkv[:, 2 * kv_heads : -kv_heads], qkv[:, -kv_heads:]
    for x in (k, v):
        x.copy_(torch.randn(x.shape) * 10.0 ** torch.randint(-9, 7, (tokens, kv_heads, 1)))
    k[1], v[1] = 0.0, 0.0
    k[2, 0], v[2, -1] = 1e9, -1e9
    return k, v


@pytest.mark.parametrize(
    ("scales", "kv_heads", "dim", "tokens"),
    [
        ("token", 3, 128, 5),
        ("token", 1, 80, 67),
        ("head", 8, 64, 4),
        ("head", 1, 256, 66),
        ("channel", 1, 256, 5),
        ("channel", 3, 64, 70),
        ("channel, zero points", 8, 80, 3),
        ("channel, zero points", 2, 128, 64),
    ],
)
def test_what_the_quantizers_and_the_cpu_store(scales: str, kv_heads: int, dim: int, tokens: int) -> None:
    """Scattered slots of any position, parts of a buffer. Other slots keep their bytes; saturation is counted."""
    torch.manual_seed(dim + tokens)
    scheme = full_scheme(scales, kv_heads, dim)
    k, v = parts_of_one_buffer(tokens, kv_heads, dim)
    slots = torch.randperm(PAGES * PAGE_SIZE)[:tokens]
    positions = torch.randint(600, (tokens,), dtype=torch.int32)
    cache, beyond = poisoned(scheme), torch.full((3,), 5)
    append(k, v, slots, positions, cache, SchemeTables.of(scheme, CPU), beyond)

    pages = Int8Pages(scheme, PAGES, PAGE_SIZE)
    pages.append(k.contiguous(), v.contiguous(), slots, positions.long())
    on_cpu = pages.read_bytes(np.arange(PAGES), PAGES * PAGE_SIZE)
    rounded = [quantizers.quantize_k(k[i : i + 1], scheme.at(int(positions[i]) // 128)) for i in range(tokens)]
    keys = torch.cat([x for x, _ in rounded])
    key_scales = torch.cat([x for _, x in rounded if x is not None]) if scheme.k_scale is None else None
    values, value_scales = quantizers.quantize_v(v, scheme)
    others = torch.ones(PAGES * PAGE_SIZE, dtype=torch.bool).index_fill(0, slots, False)
    blank = by_slot(poisoned(scheme))
    expected = keys, values, key_scales, value_scales
    for found, before, of_quantizers, of_cpu in zip(by_slot(cache), blank, expected, on_cpu, strict=True):
        if found is None or before is None or of_quantizers is None or of_cpu is None:
            assert found is before is of_quantizers is of_cpu is None
            continue
        assert same_bits(found[slots], of_quantizers)
        assert same_bits(found[slots], torch.as_tensor(of_cpu[slots.numpy()]))
        assert same_bits(found[others], before[others])
    saturated = [pages.saturation.saturated[name] for name in "kv"]
    assert beyond.tolist() == [5, 5 + saturated[0], 5 + saturated[1]]
    assert all(saturated) == (scales != "token")


def test_a_plain_scheme() -> None:
    """Without maps and rotations, and with one token."""
    scheme = AttentionScheme(2, 2, 64)
    k, v = torch.randn(1, 2, 64), torch.randn(1, 2, 64)
    cache, beyond = poisoned(scheme), torch.zeros(3, dtype=torch.int64)
    position = torch.tensor([9], dtype=torch.int32)
    append(k, v, torch.tensor([300]), position, cache, SchemeTables.of(scheme, CPU), beyond)
    (k8, k_scale), (v8, v_scale) = quantizers.quantize_k(k, scheme), quantizers.quantize_v(v, scheme)
    for found, expected in zip(by_slot(cache), (k8, v8, k_scale, v_scale), strict=True):
        assert found is not None
        assert expected is not None
        assert same_bits(found[300:301], expected)


def test_no_slot_and_no_token() -> None:
    """Tokens with a negative slot are the padding of a captured batch: neither stored nor counted."""
    for scales in ("token", "head"):
        scheme = full_scheme(scales, 2, 64)
        tables = SchemeTables.of(scheme, CPU)
        k, v = (torch.randn(3, 2, 64) * 100 for _ in range(2))
        positions = torch.zeros(3, dtype=torch.int32)
        caches, counts = [poisoned(scheme) for _ in range(3)], torch.zeros(3, 3, dtype=torch.int64)
        append(k, v, torch.tensor([-1, 5, -300]), positions, caches[0], tables, counts[0])
        append(k[1:2], v[1:2], torch.tensor([5]), positions[1:2], caches[1], tables, counts[1])
        append(k[:0], v[:0], torch.empty(0, dtype=torch.int64), positions[:0], caches[2], tables, counts[2])
        assert all(map(same_bits, stores(caches[0]), stores(caches[1])))
        assert all(map(same_bits, stores(caches[2]), stores(poisoned(scheme))))
        assert torch.equal(counts[0], counts[1])
        assert counts[0].any() == (scales == "head")
        assert not counts[2].any()


def test_nan_reaches_the_scale() -> None:
    """Of its own row only. As in the quantizers; the C++ kernels store the smallest scale."""
    scheme = AttentionScheme(2, 2, 64, v_rotation_block=64)
    k, v = torch.randn(3, 2, 64), torch.randn(3, 2, 64)
    k[1, 0, 7] = v[2, 1, 63] = math.nan
    cache, beyond = poisoned(scheme), torch.zeros(3, dtype=torch.int64)
    slots, positions = torch.arange(3), torch.arange(3, dtype=torch.int32)
    append(k, v, slots, positions, cache, SchemeTables.of(scheme, CPU), beyond)
    found = by_slot(cache)
    for at, (x8, scale) in enumerate((quantizers.quantize_k(k, scheme), quantizers.quantize_v(v, scheme))):
        found8, found_scale = found[at], found[at + 2]
        assert found8 is not None
        assert found_scale is not None
        assert scale is not None
        is_nan = scale.isnan()
        assert is_nan.sum() == 1
        assert torch.equal(found_scale[:3].isnan(), is_nan)
        assert same_bits(found_scale[:3][~is_nan], scale[~is_nan])
        assert same_bits(found8[:3][~is_nan], x8[~is_nan])


@pytest.mark.parametrize(("kv_heads", "dim", "tokens"), [(2, 80, 4), (1, 64, 66)])
def test_bfloat16(kv_heads: int, dim: int, tokens: int) -> None:
    """The bits that the C++ kernels store, for halves, tiny numbers and NaN."""
    torch.manual_seed(dim)
    k, v = parts_of_one_buffer(tokens, kv_heads, dim)
    halves = torch.arange(dim, dtype=torch.int32) * 0x8000 + 0x3F800000
    k[0, 0], v[0, 0] = halves.view(torch.float32), -halves.view(torch.float32)
    k[3] *= 2.0**-62
    k[3, 0, :3] = torch.tensor([-(2.0**-62), -(2.0**-62) * 0.998, math.nan])
    slots = torch.randperm(2 * 128)[:tokens]
    cache_k = torch.full((2, 1, kv_heads, 128, dim), math.nan, dtype=torch.bfloat16)
    cache_v = torch.full((2, 1, kv_heads, dim, 128), math.nan, dtype=torch.bfloat16)
    append_bfloat16(k, v, slots, cache_k, cache_v)
    pages = BFloat16Pages(kv_heads, kv_heads, dim, 2, 128)
    pages.append(k.contiguous(), v.contiguous(), slots, slots)
    found = cache_k.transpose(2, 3).flatten(0, 2), cache_v.permute(0, 1, 4, 2, 3).flatten(0, 2)
    others = torch.ones(256, dtype=torch.bool).index_fill(0, slots, False)
    for x, expected in zip(found, pages.read(np.arange(2), 256), strict=True):
        assert same_bits(x[slots].float(), torch.as_tensor(expected[slots.numpy()]))
        assert x[others].isnan().all()
