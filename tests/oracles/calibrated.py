"""Random q, k and v, schemes calibrated on them, and the reference's attention."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from faquant.kernels import quantizers, reference
from faquant.kernels.scheme import AttentionScheme

KINDS = ["token", "token, centered", "head", "channel", "channel, zero points", "q static"]


def block_of(dim: int) -> int:
    return dim & -dim


def random_qkv(
    tokens: int, length: int, heads: int, kv_heads: int, dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q of the last tokens, k with a few channels far from zero, v."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, heads, dim, generator=generator)
    k = torch.randn(length, kv_heads, dim, generator=generator)
    k[:, :, 1] = k[:, :, 1] * 3 + 20
    v = torch.randn(length, kv_heads, dim, generator=generator) + 0.5
    return q, k, v


def make_scheme(kind: str, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> AttentionScheme:
    """A scheme of this kind, calibrated on k and v, with slight clipping."""
    more["p_float16"] = more.get("p_levels") == 127
    _, heads, dim = q.shape
    kv_heads = k.shape[1]
    base: dict[str, Any] = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim}
    if kind != "token":
        base["rotation_block"] = block_of(dim)
    if kind in ("token, centered", "channel", "channel, zero points"):
        base["k_center"] = k.mean(0)
        base["k_equalizer"] = (k - k.mean(0)).abs().amax(0) + 0.1
        base["rotation_sign"] = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(dim)[:dim]
    if kind.startswith("token"):
        return AttentionScheme(**base, **more)
    mapped = quantizers.map_k(k, AttentionScheme(**base))
    if kind == "channel, zero points":
        # Zero points of K on purpose, although the center makes them unnecessary.
        for part, x in (("k", mapped + 0.3), ("v", v)):
            low, high = x.amin(0), x.amax(0)
            base[f"{part}_scale"] = (high - low).clamp_min(0.1) / 250
            base[f"{part}_offset"] = (-(low + high) / 2 / base[f"{part}_scale"]).round().clamp(-100, 100)
    else:
        over = (0, 2) if kind in ("head", "q static") else (0,)
        for part, x in (("k", mapped), ("v", v)):
            base[f"{part}_scale"] = (x.abs().amax(over, keepdim=True)[0].clamp_min(0.1) / 127).expand(kv_heads, -1)
    if kind == "q static":
        base["q_scale"] = quantizers.map_q(q, AttentionScheme(**base)).abs().amax((0, 2))[:, None] / 120
    return AttentionScheme(**base, **more)


def run(scheme: AttentionScheme, q: Tensor, k: Tensor, v: Tensor, start: int, window: int | None = None) -> Tensor:
    k8, k_scale = quantizers.quantize_k(k, scheme)
    v8, v_scale = quantizers.quantize_v(v, scheme)
    return reference.attend(q, k8, v8, k_scale, v_scale, scheme, start, window)


def float64(x: Tensor) -> np.ndarray:
    return x.numpy().astype(np.float64)
