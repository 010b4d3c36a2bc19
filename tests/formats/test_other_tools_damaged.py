"""Checkpoints of other tools with damaged or missing tensors are refused, and the error names the tensor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from faquant.errors import FaquantError
from faquant.formats import open_checkpoint
from oracles.interop import Tensors, edited

L = "model.layers.0."
DAMAGED: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "a scale of zero": ("llmc-w8a8-kv", lambda t: t[f"{L}mlp.up_proj.weight_scale"].zero_(), "zero"),
    "a scale that is NaN": ("llmc-w8a8-kv", lambda t: t[f"{L}mlp.up_proj.weight_scale"].fill_(torch.nan), "NaN"),
    "a cache's scale below zero": ("llmc-w8a8-kv", lambda t: t[f"{L}self_attn.k_scale"].neg_(), "negative"),
    "no scale": ("llmc-w8a8-kv", lambda t: t.pop(f"{L}mlp.up_proj.weight_scale"), "weight_scale"),
    "no table of V": ("llmc-w8a8-kv", lambda t: t.pop(f"{L}self_attn.v_scale"), "v_scale"),
    "too few scales": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}mlp.up_proj.weight_scale": torch.ones(7, 1)}),
        r"has shape \[7, 1\]",
    ),
    "a table of another shape": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}self_attn.k_scale": torch.ones(3)}),
        r"has shape \[3\]",
    ),
    "asymmetric weights": (
        "llmc-w8a8-kv",
        lambda t: t.update({f"{L}mlp.up_proj.weight_zero_point": torch.ones(128, 1, dtype=torch.int8)}),
        "is not zero",
    ),
    "a multiplier of another size": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.up_proj.pre_quant_scale": torch.ones(7)}),
        r"has shape \[7\]",
    ),
    "no scale of the inputs": ("modelopt-int8sq", lambda t: t.pop(f"{L}mlp.up_proj.input_scale"), "input_scale"),
    "scales of inputs per channel": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.up_proj.input_scale": torch.ones(64)}),
        "only one scale",
    ),
    "no zero point": (
        "quark-kv-tensor-asym",
        lambda t: t.pop(f"{L}self_attn.v_proj.output_zero_point"),
        "output_zero_point",
    ),
    "a norm of integers": (
        "llmc-w8a8-kv",
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.int64)}),
        "dtype int64, but must be a float type",
    ),
    "int8 weights that no one has quantized": (
        "quark-kv-tensor-asym",
        lambda t: t.update({f"{L}mlp.up_proj.weight": t[f"{L}mlp.up_proj.weight"].to(torch.int8)}),
        "dtype int8, but must be a float type",
    ),
    "scales whose product is zero": (
        "modelopt-int8sq",
        lambda t: (t[f"{L}mlp.up_proj.input_scale"].fill_(1e-38), t[f"{L}mlp.up_proj.weight_scale"].fill_(1e-20)),
        "input_scale · .*weight_scale holds a scale that is NaN, infinite, or zero",
    ),
    "float64 beyond float32": (
        "float",
        lambda t: t.update({"lm_head.weight": torch.full((128, 64), 1e300, dtype=torch.float64)}),
        "infinity",
    ),
    "a norm's copy that differs": (
        "msms-classic-m3-safetensor-fp32",
        lambda t: t[f"{L}input_layernorm.module.weight"].add_(1),
        "differs from",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tensors_are_named(case: str, tmp_path: Path) -> None:
    name, edit, message = DAMAGED[case]
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(edited(name, tmp_path / "model", lambda tensors: (edit(tensors), None)[1])).check_values()
