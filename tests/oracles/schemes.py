"""Attention schemes with static scales of every shape."""

from typing import Any

import torch

from faquant.kernels.scheme import AttentionScheme

SCALES = ["token", "head", "channel", "channel, zero points"]


def make_scheme(scales: str, heads: int, kv_heads: int, dim: int, **more: Any) -> AttentionScheme:
    more["p_float16"] = more.get("p_levels") == 127
    if scales == "token":
        return AttentionScheme(heads, kv_heads, dim, **more)
    width = 1 if scales == "head" else dim
    table = torch.linspace(0.02, 0.03, kv_heads * width).view(kv_heads, width)
    if scales == "channel, zero points":
        more["v_offset"] = torch.linspace(-90, 100, kv_heads * width).round().view(kv_heads, width)
    return AttentionScheme(heads, kv_heads, dim, k_scale=table, v_scale=1.7 * table, **more)
