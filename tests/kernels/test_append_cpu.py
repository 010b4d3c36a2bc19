"""The C++ code stores the bytes that the quantizers say, for every instruction set."""

from typing import Any

import numpy as np
import pytest
import torch

from faquant.kernels import isa as cpu
from faquant.kernels import quantizers
from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import MAP_BLOCK
from oracles.pages import poisoned
from oracles.schemes import SCALES, make_scheme

ISAS = cpu.available_isas()


@pytest.mark.parametrize("position", [128, 768, 1024, 3072 - 256, 5000 * 128])
@pytest.mark.parametrize("scales", ["token", "channel, zero points"])
def test_a_sequence_that_starts_at_a_position_stores_the_bytes_of_a_longer_one(scales: str, position: int) -> None:
    generator = torch.Generator().manual_seed(position)
    center, equalizer = (torch.rand(3, 2, 24, generator=generator) + 0.5 for _ in range(2))
    scheme = make_scheme(scales, 6, 2, 24, k_center=center, k_equalizer=equalizer)
    k, v = (torch.randn(1280, 2, 24, generator=generator) for _ in range(2))
    slots, table = np.arange(1280), np.arange(10)
    whole, part = Int8Pages(scheme, 10, 128), Int8Pages(scheme.starting_at(position), 10, 128)
    whole.append(k, v, slots, slots + position)
    part.append(k, v, slots, slots)
    for expected, found in zip(whole.read_bytes(table, 1280), part.read_bytes(table, 1280), strict=True):
        assert expected is found is None or np.array_equal(expected, found)
    tiles = [(tile, scheme.at((position + 128 * number) // MAP_BLOCK)) for number, tile in enumerate(k.split(128))]
    read = [quantizers.dequantize_k(*quantizers.quantize_k(tile, here), here) for tile, here in tiles]
    assert torch.equal(torch.from_numpy(part.read(table, 1280)[0]), torch.cat(read))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dim", [7, 12, 16, 64, 80, 96, 128, 256])
def test_append_stores_what_the_quantizers_say(isa: str, scales: str, dim: int) -> None:
    """Any slots and positions; neighbors keep their bytes."""
    generator = torch.Generator().manual_seed(dim)
    more: dict[str, Any] = {
        "k_center": torch.randn(3, 2, dim, generator=generator),
        "k_equalizer": torch.rand(3, 2, dim, generator=generator) + 0.5,
        "rotation_block": dim & -dim,
        "rotation_sign": torch.randint(2, (dim,), generator=generator) * 2.0 - 1,
        "v_rotation_block": dim & -dim,
    }
    if scales == "channel, zero points":
        more["k_offset"] = torch.full((2, dim), 3.0)
    scheme = make_scheme(scales, 4, 2, dim, **more)
    k, v = (torch.randn(40, 2, dim, generator=generator) * 10.0 ** torch.randint(-9, 7, (40, 2, 1)) for _ in range(2))
    k[3], v[3] = 0.0, 0.0
    k[4, 0], v[4, 1] = 1e9, -1e9
    positions = torch.randint(5000, (40,), generator=generator)
    slots = torch.randperm(3 * 256, generator=generator)[:40]
    pages, untouched = poisoned(scheme, 3, 256, isa), poisoned(scheme, 3, 256, isa)
    pages.append(k, v, slots, positions)
    found = pages.read_bytes(torch.arange(3), 3 * 256)
    blank = untouched.read_bytes(torch.arange(3), 3 * 256)
    expected_k = [quantizers.quantize_k(k[i : i + 1], scheme.at(int(positions[i]) // MAP_BLOCK)) for i in range(40)]
    v8, v_scale = quantizers.quantize_v(v, scheme)
    k8 = torch.cat([values for values, _ in expected_k])
    k_scale = None if scheme.k_scale is not None else torch.cat([s for _, s in expected_k if s is not None])
    for store_, old, values in zip(found, blank, (k8, v8, k_scale, v_scale), strict=True):
        if store_ is None or old is None or values is None:
            assert store_ is values is None
            continue
        assert np.array_equal(store_[slots], values)
        others = torch.ones(3 * 256, dtype=torch.bool).index_fill(0, slots, False)
        assert np.array_equal(store_[others].view(np.uint8), old[others].view(np.uint8))


@pytest.mark.parametrize("page_size", [0, -128, 64, 100, 129])
def test_a_page_holds_whole_tiles(page_size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 128"):
        Int8Pages(make_scheme("token", 2, 1, 16), 2, page_size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": torch.zeros(3, 2, 8)}, "v must be"),
        ({"k": torch.zeros(2, 2, 9)}, "k must be"),
        ({"v": torch.zeros(2, 2, 8).half()}, "v must be"),
        ({"slots": torch.tensor([0, 256])}, "slot is not in the cache"),
        ({"slots": torch.tensor([-1, 0])}, "slot is not in the cache"),
        ({"positions": torch.tensor([0, -1])}, "position is negative"),
        ({"positions": torch.tensor([0])}, "positions must be"),
        ({"positions": np.array([0.0, 1.0])}, "positions must be"),
        ({"slots": np.array([0, 200], np.int32)}, "slots must be a contiguous array of int64"),
        ({"slots": np.array([0, 0, 200, 0])[::2]}, "slots must be a contiguous array of int64"),
        ({"k": np.zeros((2, 2, 8))}, "k must be a contiguous array of float32"),
    ],
)
def test_wrong_operands_of_append_are_refused(wrong: dict[str, Any], message: str) -> None:
    pages = Int8Pages(make_scheme("token", 4, 2, 8), 2, 128)
    good: dict[str, Any] = {
        "k": torch.zeros(2, 2, 8),
        "v": torch.zeros(2, 2, 8),
        "slots": torch.tensor([0, 200]),
        "positions": torch.tensor([0, 1]),
    }
    pages.append(**good)
    with pytest.raises(ValueError, match=message):
        pages.append(**{**good, **wrong})
