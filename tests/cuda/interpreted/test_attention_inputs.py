"""One launch from the fused product of q, k and v has the bits of norm, RoPE, append and map_queries of the oracles."""

import numpy as np
import pytest
import torch

from faquant.kernels import modules, reference
from faquant.kernels.cuda.attention_inputs import Rotation, attention_inputs
from faquant.kernels.cuda.cache import Int8Cache, SchemeTables
from faquant.kernels.pages import Int8Pages
from oracles.schemes import make_scheme

pytestmark = pytest.mark.cuda

CPU = torch.device("cpu")


@pytest.mark.usefixtures("marked_memory")
@pytest.mark.parametrize(
    ("scales", "heads", "kv_heads", "dim", "tokens", "window", "normed"),
    [
        ("token", 4, 2, 128, 3, None, False),
        ("token", 2, 1, 80, 65, 150, True),
        ("head", 4, 2, 64, 4, 150, True),
        ("channel, zero points", 2, 1, 256, 2, None, False),
    ],
)
def test_the_bits_of_the_oracles(
    scales: str, heads: int, kv_heads: int, dim: int, tokens: int, window: int | None, normed: bool
) -> None:
    torch.manual_seed(dim + tokens)
    scheme = make_scheme(
        scales,
        heads,
        kv_heads,
        dim,
        q_scale=None if scales == "token" else torch.full((heads, 1), 0.02),
        k_center=torch.randn(2, kv_heads, dim),
        k_equalizer=torch.rand(2, kv_heads, dim) + 0.5,
        rotation_block=dim & -dim,
        rotation_sign=torch.randint(2, (dim,)) * 2.0 - 1,
        v_rotation_block=dim & -dim,
        map_block=128,
    )
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim) * 2
    before = qkv.clone()
    angle = torch.randn(tokens, dim) * 9
    q_norm, k_norm = (torch.rand(dim) + 0.5 if normed else None for _ in range(2))
    rotation = Rotation(angle.cos(), angle.sin(), q_norm, k_norm, 1e-6)
    slots = torch.randperm(3 * 128)[:tokens]
    slots[-1] = -1
    positions = torch.randint(300, (tokens,), dtype=torch.int32)
    positions[:2] = torch.tensor([5, 290])
    cache, beyond = Int8Cache.empty(scheme, 3, 128, CPU), torch.zeros(3, dtype=torch.int64)
    tables = SchemeTables.of(scheme, CPU)
    found = attention_inputs(qkv, rotation, slots, positions, cache, tables, 2, beyond, window)
    assert torch.equal(qkv, before)

    q, k, v = (x.contiguous() for x in qkv.view(tokens, -1, dim).split([heads, kv_heads, kv_heads], dim=1))
    if q_norm is not None and k_norm is not None:
        q, k = modules.RMSNorm(q_norm, 1e-6)(q), modules.RMSNorm(k_norm, 1e-6)(k)
    q, k = (modules.rope(x, angle.cos()[:, None], angle.sin()[:, None]) for x in (q, k))
    pages = Int8Pages(scheme, 3, 128)
    pages.append(k[:-1].contiguous(), v[:-1].contiguous(), slots[:-1], positions[:-1].long())
    k8, v8, k_scale, v_scale = (
        None if x is None else torch.as_tensor(x[slots[:-1].numpy()]) for x in pages.read_bytes(np.arange(3), 384)
    )
    page, key = slots[:-1] // 128, slots[:-1] % 128
    assert torch.equal(cache.k[page, 0, :, key], k8)
    assert torch.equal(cache.v[page, 0, :, :, key], v8)
    if cache.k_scale is not None and cache.v_scale is not None:
        assert torch.equal(cache.k_scale[page, 0, :, key], k_scale)
        assert torch.equal(cache.v_scale[page, 0, :, key], v_scale)

    expected = reference.map_queries(q, scheme, 2)
    oldest = torch.zeros_like(positions) if window is None else (positions - window + 1).clamp_min(0)
    numbers = torch.arange(2)[:, None]
    seen = (oldest.clamp_max(128) // 128 <= numbers) & (numbers <= positions.clamp_max(128) // 128)
    assert 0 < seen.sum() < 2 * tokens
    for ours, theirs in zip((found.values, found.scale, found.bias), expected, strict=True):
        assert torch.equal(ours[seen].view(torch.uint8), theirs[seen].view(torch.uint8))
    assert (found.values[~seen] == 0x7F).all()
    assert found.scale[~seen].isnan().all()
    saturated = [pages.saturation.saturated[name] for name in "kv"]
    assert beyond[1:].tolist() == saturated
    assert (beyond > 0).tolist() == [scales == "head", scales != "token", scales != "token"]


def test_no_token() -> None:
    scheme = make_scheme("token", 2, 1, 64)
    empty = torch.empty(0, 64)
    cache, beyond = Int8Cache.empty(scheme, 1, 128, CPU), torch.zeros(3, dtype=torch.int64)
    slots, positions = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    tables = SchemeTables.of(scheme, CPU)
    qkv = torch.empty(0, 4 * 64)
    found = attention_inputs(qkv, Rotation(empty, empty), slots, positions, cache, tables, 1, beyond)
    assert found.scale.shape == (1, 0, 2)
