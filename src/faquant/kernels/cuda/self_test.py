"""Compares the kernels with the reference on the device, before anybody trusts them."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import modules as cpu
from ..pages import Int8Pages as CpuPages
from ..pages import Spans
from ..scheme import P_LEVELS, AttentionScheme
from ..tables import DynamicTable, FloatTable, LinearTable, StaticTable
from .elementwise import rms_norm, rope, silu_times
from .modules import linear
from .pages import Int8Pages

HEADS, KV_HEADS, DIM = 8, 2, 64
PAST, TOKENS = 2100, 3
"""Tokens in the cache, over a split's end, and new ones."""


def self_test(device: torch.device) -> dict[str, bool]:
    """For each part, whether its bits on the device are those of the CPU's kernels."""
    return {name: test(device) for name, test in _TESTS.items()}


def _same(ours: Tensor, theirs: Tensor | np.ndarray) -> bool:
    expected = torch.as_tensor(theirs)
    return torch.equal(ours.cpu().view(torch.int32), expected.contiguous().view(torch.int32))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _attention(device: torch.device) -> bool:
    by_token = AttentionScheme(
        HEADS,
        KV_HEADS,
        DIM,
        k_center=_random(3, KV_HEADS, DIM, seed=1),
        k_equalizer=_random(3, KV_HEADS, DIM, seed=2).exp(),
        rotation_block=DIM,
        rotation_sign=_random(DIM, seed=3).sign(),
        v_rotation_block=DIM,
    )
    scale = torch.linspace(0.02, 0.04, KV_HEADS * DIM).view(KV_HEADS, DIM)
    by_channel = AttentionScheme(
        HEADS, KV_HEADS, DIM, k_scale=scale, v_scale=scale, v_offset=torch.round(scale * 100), quantized_sum=True
    )
    mindie = AttentionScheme(
        HEADS,
        KV_HEADS,
        DIM,
        q_scale=torch.full((HEADS, 1), 0.03),
        k_scale=scale[:, :1],
        v_scale=scale[:, :1],
        p_levels=P_LEVELS["int8"],
        p_float16=True,
    )
    schemes = (
        by_token,
        replace(by_token, p_levels=P_LEVELS["int16"]),
        replace(by_channel, p_levels=P_LEVELS["uint8"]),
        mindie,
    )
    return all(_attends(scheme, device) for scheme in schemes)


def _attends(scheme: AttentionScheme, device: torch.device) -> bool:
    tokens, pages = PAST + TOKENS, -(-(PAST + TOKENS) // 128)
    q, k, v = _random(TOKENS, HEADS, DIM), *(_random(tokens, KV_HEADS, DIM, seed=seed) for seed in (4, 5))
    positions, table = np.arange(tokens), np.arange(pages)[::-1].copy()
    slots = table[positions // 128] * 128 + positions % 128
    theirs, ours = CpuPages(scheme, pages, 128), Int8Pages(scheme, pages, 128, device)
    theirs.append(k, v, slots, positions)
    ours.append(k.to(device), v.to(device), slots, positions)
    spans = Spans.of([(TOKENS, PAST, table)])
    return _same(ours.attend(q.to(device), spans), theirs.attend(q, spans))


def _int8_linears(device: torch.device) -> bool:
    inputs, outputs = 192, 80
    weight = torch.arange(outputs * inputs).remainder(255).sub(127).to(torch.int8).view(outputs, inputs).numpy()
    scale = np.linspace(0.01, 0.02, outputs, dtype=np.float32)
    dynamic = DynamicTable(weight, scale, bias=scale, hadamard_block=64)
    one, zero = np.full(1, 0.03, np.float32), np.full(1, 5, np.float32)
    static = StaticTable(weight, one, zero, np.arange(outputs, dtype=np.int32), scale)
    x = _random(70, inputs)
    expected: list[tuple[LinearTable, Tensor]] = [
        (dynamic, cpu.DynamicLinear(weight, scale, scale, 64)(x)),
        (static, cpu.StaticLinear(weight, one, zero, static.quant_bias, scale)(x)),
    ]
    return all(
        _same(linear(table, device)(x[:rows].to(device)), theirs[:rows])
        for table, theirs in expected
        for rows in (1, 70)
    )


def _float_linears(device: torch.device) -> bool:
    weight, x = _random(80, 192).numpy(), _random(5, 192)
    return _same(linear(FloatTable(weight), device)(x.to(device)), cpu.FloatLinear(weight)(x))


def _elementwise(device: torch.device) -> bool:
    x, weight = _random(3, 200), _random(200, seed=1)
    gate, up = (_random(3, 200, seed=seed) * 40 for seed in (2, 3))
    angles = _random(3, 1, DIM, seed=4) * math.pi
    q = _random(3, HEADS, DIM, seed=5)
    return (
        _same(rms_norm(x.to(device), weight.to(device), 1e-5), cpu.RMSNorm(weight.numpy(), 1e-5)(x))
        and _same(silu_times(gate.to(device), up.to(device)), cpu.silu_times(gate, up))
        and _same(
            rope(q.clone().to(device), angles.cos().to(device), angles.sin().to(device)),
            cpu.rope(q.clone(), angles.cos(), angles.sin()),
        )
    )


_TESTS: dict[str, Callable[[torch.device], bool]] = {
    "attention": _attention,
    "int8 linears": _int8_linears,
    "float linears": _float_linears,
    "norm, RoPE and SwiGLU": _elementwise,
}
