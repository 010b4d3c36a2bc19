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
from ..tables import ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS, DynamicTable, FloatTable, LinearTable, StaticTable
from .attention_inputs import map_queries
from .cache import DeviceSpans
from .decode import Workspace, decode, most_splits
from .elementwise import gelu_times, rms_norm, rope, silu_times
from .linear import SplitSums
from .modules import Int8Linear, linear
from .pages import Int8Pages
from .rounding import round_inputs

HEADS, KV_HEADS, DIM = 8, 2, 64
PAST = 2100
"""Tokens in the cache, over a split's end."""
FEW, SEVERAL = 3, 20
"""New tokens, for the kernels of decoding and of prompts."""
WIDE = 4096
"""Inputs of a linear whose sums several programs share."""


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
    return all(_attends(scheme, tokens, device) for scheme in schemes for tokens in (FEW, SEVERAL))


def _attends(scheme: AttentionScheme, count: int, device: torch.device) -> bool:
    tokens, pages = PAST + count, -(-(PAST + count) // 128)
    q, k, v = _random(count, HEADS, DIM), *(_random(tokens, KV_HEADS, DIM, seed=seed) for seed in (4, 5))
    positions, table = np.arange(tokens), np.arange(pages)[::-1].copy()
    slots = table[positions // 128] * 128 + positions % 128
    theirs, ours = CpuPages(scheme, pages, 128), Int8Pages(scheme, pages, 128, device)
    theirs.append(k, v, slots, positions)
    ours.append(k.to(device), v.to(device), slots, positions)
    spans = Spans.of([(count, PAST, table)])
    expected = theirs.attend(q, spans)
    return _same(ours.attend(q.to(device), spans), expected) and _same(_by_split(ours, q.to(device), spans), expected)


def _by_split(pages: Int8Pages, q: Tensor, spans: Spans) -> Tensor:
    """Attention of single tokens with a program for each split, as long sequences and large batches have it."""
    on_device = DeviceSpans.of(spans, q.device)
    queries = map_queries(q, on_device.positions, pages.tables, pages.maps_of(on_device), pages.beyond)
    splits = most_splits(on_device.longest + 1, None)
    workspace = Workspace.empty(len(q), splits, pages.tables, q.device, by_tile=False)
    out = torch.empty_like(q)
    decode(queries, pages.cache, pages.tables, on_device, None, workspace, out)
    return out


def _int8_linears(device: torch.device) -> bool:
    inputs, outputs = 192, 80
    weight = torch.arange(outputs * inputs).remainder(255).sub(127).to(torch.int8).view(outputs, inputs).numpy()
    scale = np.linspace(0.01, 0.02, outputs, dtype=np.float32)
    dynamic = DynamicTable(weight, scale, bias=scale, hadamard_block=64)
    ranged, wide = (replace(dynamic, input_steps=steps) for steps in (ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS))
    one, zero = np.full(1, 0.03, np.float32), np.full(1, 5, np.float32)
    static = StaticTable(weight, one, zero, np.arange(outputs, dtype=np.int32), scale)
    x = _random(70, inputs)
    expected: list[tuple[LinearTable, Tensor]] = [
        (dynamic, cpu.DynamicLinear(weight, scale, scale, 64)(x)),
        (ranged, cpu.DynamicLinear(weight, scale, scale, 64, None, ASYMMETRIC_INPUT_STEPS)(x)),
        (wide, cpu.DynamicLinear(weight, scale, scale, 64, None, WIDE_INPUT_STEPS)(x)),
        (static, cpu.StaticLinear(weight, one, zero, static.quant_bias, scale)(x)),
    ]
    return all(
        _same(linear(table, device)(x[:rows].to(device)), theirs[:rows])
        for table, theirs in expected
        for rows in (1, 70)
    ) and _shared_sums(device)


def _shared_sums(device: torch.device) -> bool:
    """Programs that share a tile's sums count one another, again and again with the same counters."""
    weight = torch.arange(64 * WIDE).mul(7).remainder(255).sub(127).to(torch.int8).view(64, WIDE).numpy()
    table = DynamicTable(weight, np.linspace(0.01, 0.02, 64, dtype=np.float32))
    ours, x = Int8Linear.of(table, device), _random(8, WIDE)
    expected = cpu.DynamicLinear(weight, table.scale)(x)
    sums = SplitSums.empty([(64, WIDE)], 8, device)
    return all(
        _same(ours.product(round_inputs(x[:rows].to(device), ours.rounding), sums=sums), expected[:rows])
        for rows in (1, 8, 3) * 3
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
        and _same(gelu_times(gate.to(device), up.to(device)), cpu.gelu_times(gate, up))
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
