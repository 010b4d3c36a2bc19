"""Mapped queries have the bits of reference.map_queries under each map that a token sees."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from faquant.kernels import reference
from faquant.kernels.cuda.attention_inputs import map_queries
from faquant.kernels.cuda.cache import MappedQueries, SchemeTables
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import AttentionScheme
from oracles.schemes import make_scheme

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")
MAP_BLOCK = 128


def full_scheme(scales: str, q_scale: str, heads: int, kv_heads: int, dim: int) -> AttentionScheme:
    """Three maps, of 128 positions each, and a rotation with signs."""
    more: dict[str, Any] = {}
    if q_scale != "token":
        more["q_scale"] = torch.rand(heads, 1 if q_scale == "head" else dim) * 0.02 + 0.005
    return make_scheme(
        scales,
        heads,
        kv_heads,
        dim,
        k_center=torch.randn(3, kv_heads, dim),
        k_equalizer=torch.rand(3, kv_heads, dim) + 0.5,
        rotation_block=dim & -dim,
        rotation_sign=torch.randint(2, (dim,)) * 2.0 - 1,
        map_block=MAP_BLOCK,
        **more,
    )


def maps_seen(positions: Tensor, maps: int, window: int | None) -> Tensor:
    """Which maps [maps, tokens] there are among the keys that each token sees."""
    oldest = torch.zeros_like(positions) if window is None else (positions - window + 1).clamp_min(0)
    first, last = ((x // MAP_BLOCK).clamp_max(maps - 1) for x in (oldest, positions))
    numbers = torch.arange(maps)[:, None]
    return (first <= numbers) & (numbers <= last)


def check(found: MappedQueries, expected: reference.MappedQueries, seen: Tensor) -> None:
    """Equal bits where seen, the marks of `marked_memory` elsewhere."""
    for ours, theirs in zip((found.values, found.scale, found.bias), expected, strict=True):
        assert torch.equal(ours[seen].view(torch.uint8), theirs[seen].view(torch.uint8))
    assert (found.values[~seen] == 127).all()
    assert found.scale[~seen].isnan().all()
    assert found.bias[~seen].isnan().all()


@pytest.mark.usefixtures("marked_memory")
@pytest.mark.parametrize(
    ("scales", "q_scale", "heads", "kv_heads", "dim", "tokens", "window"),
    [
        ("token", "token", 4, 2, 128, 3, None),
        ("token", "head", 2, 1, 80, 65, 130),
        ("token", "channel", 3, 3, 64, 4, 200),
        ("head", "token", 2, 1, 256, 3, None),
        ("head", "head", 8, 8, 128, 2, 100),
        ("head", "channel", 2, 1, 80, 5, None),
        ("channel", "token", 1, 1, 64, 70, None),
        ("channel", "head", 6, 3, 80, 3, None),
        ("channel, zero points", "channel", 4, 1, 256, 2, 130),
    ],
)
def test_the_bits_of_the_reference(
    scales: str, q_scale: str, heads: int, kv_heads: int, dim: int, tokens: int, window: int | None
) -> None:
    """For parts of a buffer, at positions of all maps. Maps that a token does not see are not written."""
    torch.manual_seed(dim + tokens)
    scheme = full_scheme(scales, q_scale, heads, kv_heads, dim)
    q = torch.full((tokens, heads + 2, dim), math.nan)[:, 1:-1]
    q.copy_(torch.randn(tokens, heads, dim) * 10.0 ** torch.randint(-3, 3, (tokens, heads, 1)))
    q[0, 0] = 0.0
    positions = torch.randint(600, (tokens,), dtype=torch.int32)
    # The second one sees the last map only, if there is a window: its oldest key is the first of that map.
    positions[:2] = torch.tensor([5, 2 * MAP_BLOCK + (window or 1) - 1])
    beyond = torch.full((3,), 7)
    found = map_queries(q, positions, SchemeTables.of(scheme, CPU), 3, beyond, window)
    check(found, reference.map_queries(q, scheme, 3), maps_seen(positions, 3, window))
    assert (beyond[0] > 7) == (q_scale != "token")
    assert beyond[1:].tolist() == [7, 7]


@pytest.mark.usefixtures("marked_memory")
def test_fewer_maps_than_the_scheme_has() -> None:
    """One map has no bias, and tokens beyond the last map use it."""
    scheme = full_scheme("token", "token", 2, 1, 64)
    q, positions = torch.randn(3, 2, 64), torch.tensor([0, 127, 5000], dtype=torch.int32)
    beyond = torch.zeros(3, dtype=torch.int64)
    for maps in (1, 2):
        found = map_queries(q, positions, SchemeTables.of(scheme, CPU), maps, beyond)
        check(found, reference.map_queries(q, scheme, maps), maps_seen(positions, maps, None))


def test_a_plain_scheme_and_nan() -> None:
    """Without maps and rotation. NaN makes the scale of its own row NaN, as in the reference."""
    scheme = AttentionScheme(2, 1, 64)
    q, beyond = torch.randn(2, 2, 64), torch.zeros(3, dtype=torch.int64)
    q[1, 0, 9] = math.nan
    found = map_queries(q, torch.tensor([3, 4], dtype=torch.int32), SchemeTables.of(scheme, CPU), 1, beyond)
    expected = reference.map_queries(q, scheme, 1)
    assert found.scale.isnan().nonzero().tolist() == expected.scale.isnan().nonzero().tolist() == [[0, 1, 0]]
    assert torch.equal(found.values[0, 0], expected.values[0, 0])
    assert torch.equal(found.scale[0, 0], expected.scale[0, 0])


def test_no_token() -> None:
    scheme = AttentionScheme(2, 1, 64)
    beyond = torch.zeros(3, dtype=torch.int64)
    positions = torch.empty(0, dtype=torch.int32)
    assert map_queries(torch.empty(0, 2, 64), positions, SchemeTables.of(scheme, CPU), 1, beyond).scale.numel() == 0


@pytest.mark.parametrize("q_scale", ["head", "channel"])
def test_saturation_is_counted_as_on_the_cpu(q_scale: str) -> None:
    """Once for each query, whatever number of maps it sees."""
    torch.manual_seed(5)
    scheme = full_scheme("token", q_scale, 4, 2, 64)
    starts = [0, 130, 300, 500, 127]
    q = torch.randn(len(starts), 4, 64)
    pages = Int8Pages(scheme, 4, 128)
    for x in (pages.k, pages.v, pages.k_scale, pages.v_scale):
        x.fill(1)
    pages.attend(q, Spans.of([(1, start, [0, 1, 2, 3]) for start in starts]))
    beyond = torch.zeros(3, dtype=torch.int64)
    map_queries(q, torch.tensor(starts, dtype=torch.int32), SchemeTables.of(scheme, CPU), 3, beyond)
    assert beyond.tolist() == [pages.saturation.saturated["q"], 0, 0]
    assert beyond[0] > 0
