"""Decoder layers in bfloat16, to compare with: torch's products and FlashAttention, and fused kernels between them, so
that a layer has no more launches than an int8 one."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from .attention import flash


@triton.jit
def _rms_norm(x, weight, out, eps, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, WIDTH)
    inside = columns < SIZE
    values = tl.load(x + row * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    result = values * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, result.to(tl.bfloat16), mask=inside)


@triton.jit
def _rope_append(
    qkv, cos, sin, q, k, v, context, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """A head of a token for each program: q rotated, k rotated and v into the cache's last place."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    channels = tl.arange(0, D)
    partners = (channels + D // 2) % D
    begin = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * D
    value = tl.load(begin + channels).to(tl.float32)
    if head < HEADS + KV_HEADS:
        partner = tl.load(begin + partners).to(tl.float32)
        partner = tl.where(channels < D // 2, -partner, partner)
        value = value * tl.load(cos + row * D + channels) + partner * tl.load(sin + row * D + channels)
    if head < HEADS:
        tl.store(q + (row * HEADS + head) * D + channels, value.to(tl.bfloat16))
    elif head < HEADS + KV_HEADS:
        at = (row * KV_HEADS + head - HEADS).to(tl.int64) * context + context - 1
        tl.store(k + at * D + channels, value.to(tl.bfloat16))
    else:
        at = (row * KV_HEADS + head - HEADS - KV_HEADS).to(tl.int64) * context + context - 1
        tl.store(v + at * D + channels, value.to(tl.bfloat16))


@triton.jit
def _silu_times(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    gate = tl.load(gate_up + row * (2 * SIZE) + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * SIZE) + SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=inside)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty_like(x)
    size = x.shape[1]
    _rms_norm[(len(x),)](x, weight, out, 1e-5, SIZE=size, WIDTH=triton.next_power_of_2(size), num_warps=8)
    return out


def silu_times(gate_up: Tensor) -> Tensor:
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    _silu_times[(triton.cdiv(size, 1024), rows)](gate_up, out, SIZE=size, BLOCK=1024, num_warps=4)
    return out


@dataclass
class Layer:
    """Weights [outputs, inputs] of a layer, and its cache k, v [batch, Hkv, context, D], all bfloat16 and random."""

    norms: Tensor
    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def random(
        cls,
        hidden: int,
        intermediate: int,
        heads: tuple[int, int, int],
        batch: int,
        context: int,
        device: torch.device,
    ) -> "Layer":
        count, kv_count, dim = heads

        def random(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_()

        def weight(outputs: int, inputs: int) -> Tensor:
            return random(outputs, inputs).mul_(inputs**-0.5)

        return cls(
            torch.ones(2, hidden, dtype=torch.bfloat16, device=device),
            weight((count + 2 * kv_count) * dim, hidden),
            weight(hidden, count * dim),
            weight(2 * intermediate, hidden),
            weight(hidden, intermediate),
            random(batch, kv_count, context, dim),
            random(batch, kv_count, context, dim),
        )

    def run(self, x: Tensor, cos: Tensor, sin: Tensor, as_rows: bool) -> None:
        """x bfloat16 [batch, hidden] after this layer, in place; the token is the last one of the cache.

        as_rows: whether a group's query heads are rows for SDPA."""
        batch, kv_heads, context, dim = self.k.shape
        heads = self.o.shape[1] // dim
        qkv = linear(rms_norm(x, self.norms[0]), self.qkv)
        q = x.new_empty(batch, heads, dim)
        _rope_append[(batch, heads + 2 * kv_heads)](
            qkv, cos, sin, q, self.k, self.v, context, HEADS=heads, KV_HEADS=kv_heads, D=dim, num_warps=1
        )
        if as_rows:
            out = scaled_dot_product_attention(q.view(batch, kv_heads, -1, dim), self.k, self.v)
        else:
            out = scaled_dot_product_attention(q[:, :, None], self.k, self.v, enable_gqa=True)
        x.addmm_(out.reshape(batch, -1), self.o.t())
        gate_up = linear(rms_norm(x, self.norms[1]), self.gate_up)
        x.addmm_(silu_times(gate_up), self.down.t())


class Step:
    """A decode step of several layers, captured in a graph."""

    def __init__(self, layers: list[Layer], x: Tensor, cos: Tensor, sin: Tensor, as_rows: bool) -> None:
        self._layers, self._x, self._cos, self._sin, self._as_rows = layers, x, cos, sin, as_rows
        self._graph: torch.cuda.CUDAGraph | None = None
        with flash():
            self._run()
            if x.device.type == "cuda":
                torch.cuda.synchronize()
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph):
                    self._run()

    def __call__(self) -> None:
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def _run(self) -> None:
        for layer in self._layers:
            layer.run(self._x, self._cos, self._sin, self._as_rows)
