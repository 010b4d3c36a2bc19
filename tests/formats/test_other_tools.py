"""Checkpoints as other quantizers write them: the tools' own logits, and their tables.

The logits are those of the tool's own fake-quantized model, run in float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from faquant.evaluation.divergence import window_logits
from faquant.formats import format_of, open_checkpoint
from faquant.formats.base import Opened, Source
from faquant.kernels.cpu import CpuBackend
from faquant.model.load import load
from oracles.interop import DATA, TOKENS, Tensors, divergence, edited, logits_over_cache, rms

WITH_LOGITS = sorted(path.parent.name for path in DATA.glob("*/logits.safetensors"))
FORMATS = {"llmc": "compressed-tensors", "autoround": "compressed-tensors", "msms": "msmodelslim"}
ATTN = "model.layers.{}.self_attn."
L = "model.layers.0."

KV_ONLY = {
    "llmc-kv-attn_head-sym-stat",
    "llmc-kv-tensor-asym-stat",
    "msms-c8-asym-logits",
    "msms-fa3-kv-int8",
    "quark-kv-head-sym-postrope",
}
"""Only K and V are quantized, with calibrated scales, so every value can be compared."""
Q_TOO = {
    "msms-fa3-int8",
    "msms-fa3-int8-dynamic",
    "msms-fa3-qdyn-kv-int8",
    "msms-fa3-qk-int8-vdyn",
}
"""The tool rounds q, too, as faquant's own attention does."""
LESS_EQUAL = {
    "msms-fa3-kv-dynamic": "the tool's scales per token are float32; in faquant's cache they are float16, rounded up",
    "quark-w8a8-dyn-token": "each token's greatest input is 127.5 steps, which any rounding moves to 127 or 128",
}
OTHER_ARITHMETIC = {
    "llmc-kv-token-dyn": "compressed-tensors takes one scale per head over all tokens of a call, not per token",
    "msms-w8a8dyn-fa3-qdyn-kv-int8": "msModelSlim's fake quantizer takes one scale per channel, not per token",
    "msms-w8a8-c8-sym": "msModelSlim stores deq_scale in bfloat16; see the test below",
    "msms-w8a8-fa3-int8": "msModelSlim stores deq_scale in bfloat16, as in the other one",
}
EXACT = {
    "llmc-w8a8-static-asym",
    "modelopt-int8sq-float32",
    "msms-classic-m3-safetensor-fp32",
    "quark-w8a8-static-asym-input",
}
"""No input of these calls is close to a half step, so float attention gives the tool's logits."""
INTEGER_ATTENTION = 2e-3
"""Mean KL in nats that int8 q and integer P add on these random models, whose scores are large; at most."""


def of_tool(name: str) -> Tensor:
    return load_file(DATA / name / "logits.safetensors")["logits"]


def of_float(name: str) -> Tensor:
    model = load(DATA / ("float-qwen2" if "qwen2" in name else "float"))
    return torch.as_tensor(window_logits(model, torch.tensor(TOKENS)))


@pytest.mark.parametrize("name", sorted(OTHER_ARITHMETIC))
def test_where_the_tool_s_model_is_not_its_file_as_little_is_lost(name: str) -> None:
    """OTHER_ARITHMETIC says why its logits are no oracle."""
    expected, ours = of_float(name), torch.as_tensor(window_logits(load(DATA / name), torch.tensor(TOKENS)))
    assert divergence(expected, ours) < 1.5 * divergence(expected, of_tool(name))


@pytest.mark.parametrize("name", [name for name in WITH_LOGITS if name not in OTHER_ARITHMETIC])
def test_logits_are_the_tool_s(name: str) -> None:
    """With float attention over the cache's K and V; with integer attention within its rounding."""
    tool, model = of_tool(name), load(DATA / name)
    loss = rms(tool - of_float(name))
    ours = torch.as_tensor(window_logits(model, torch.tensor(TOKENS)))
    assert loss > 0.02, "the tool's quantization is visible in the logits"
    assert divergence(tool, ours) < INTEGER_ATTENTION
    over_cache = logits_over_cache(model, TOKENS)
    if name in KV_ONLY:
        assert rms(over_cache - tool) < 1e-3
    elif name not in Q_TOO:
        # Sums in another order move a few inputs of int8 linears to the next step.
        assert rms(over_cache - tool) < (0.6 if name in LESS_EQUAL else 0.35) * loss
    if name in EXACT:
        assert rms(over_cache - tool) < 1e-5


def test_msmodelslim_s_own_model_differs_from_its_file_by_the_rounding_of_deq_scale(tmp_path: Path) -> None:
    name = "msms-w8a8-c8-sym"
    weights = load_file(DATA / "float" / "model.safetensors")

    def unrounded(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.endswith(".deq_scale")]:
            scale = (weights[key.replace("deq_scale", "weight")].abs().amax(1) / 127).float()
            assert (tensors[key] / (tensors[key.replace("deq", "input")] * scale) - 1).abs().max() < 2**-8
            tensors[key] = tensors[key.replace("deq", "input")] * scale

    exact = logits_over_cache(load(edited(name, tmp_path / "model", unrounded)), TOKENS)
    assert rms(exact - of_tool(name)) < 1e-5
    assert rms(logits_over_cache(load(DATA / name), TOKENS) - of_tool(name)) > 1e-2


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.iterdir() if (path / "config.json").exists()))
def test_every_linear_computes_what_its_tensors_say(name: str) -> None:
    """Against the documented formula: inputs are rounded in float32, as the tools do, and the rest is in float64."""
    opened, backend = open_checkpoint(DATA / name), CpuBackend()
    tensors = {key: opened.files.read(key) for key in opened.files.names()}
    generator = np.random.default_rng(0)
    for linear, size in opened.config.linears.items():
        if opened.linear_type(linear) == "FLOAT":
            continue
        short = f"{linear}."
        found = {key.removeprefix(short): wide(value) for key, value in tensors.items() if key.startswith(short)}
        x = generator.standard_normal((5, size.k)).astype(np.float32)
        expected = documented(found, x, opened.input_steps)
        # A static linear has its bias as a whole number of steps.
        step = np.abs(getattr(opened.linear(linear), "deq_scale", np.zeros(1))) / 2
        assert (np.abs(backend.linear(opened.linear(linear))(x) - expected) <= 2e-5 + step).all()


def wide(x: Any) -> Any:
    """As float64; uint16 is bfloat16, and int64 holds the bits of float32."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return (x.astype(np.uint32).view(np.float32) if x.dtype == np.int64 else x).astype(np.float64)


def documented(t: dict[str, Any], x: Any, steps: float) -> Any:
    """A quantized linear by the formulas of the tools, from its tensors by their short names."""
    x = x * np.asarray(t.get("pre_quant_scale", 1.0), np.float32)
    scale = np.asarray(t["input_scale"] if "input_scale" in t else np.abs(x).max(-1, keepdims=True) / np.float32(steps))
    offset = t.get("input_offset", t.get("input_zero_point", np.zeros(1)))
    rounded = np.clip(np.rint(x / scale.astype(np.float32)).astype(np.float64) + offset, -128, 127)
    if "deq_scale" in t:
        return (rounded @ t["weight"].T + t["quant_bias"]) * t["deq_scale"]
    weight = t["weight"] * t["weight_scale"].reshape(-1, 1)
    return (rounded - offset) * scale @ weight.T + t.get("bias", 0.0)


def raw(name: str, key: str, layer: int = 1) -> Any:
    opened = open_checkpoint(DATA / name)
    return wide(opened.files.read(ATTN.format(layer) + key)).astype(np.float32)


def scheme(name: str, layer: int = 1) -> Any:
    return open_checkpoint(DATA / name).schemes[layer]


def test_tables_of_compressed_tensors() -> None:
    one = scheme("llmc-kv-tensor-asym-stat")
    assert np.array_equal(one.k_scale, np.full((2, 1), raw("llmc-kv-tensor-asym-stat", "k_scale")))
    assert np.array_equal(one.v_offset, np.full((2, 1), raw("llmc-kv-tensor-asym-stat", "v_zero_point")))
    assert one.k_offset.any() or one.v_offset.any()
    for name in ("llmc-kv-attn_head-sym-stat", "llmc-attn-attn_head-sym-stat"):
        heads = scheme(name)
        assert np.array_equal(heads.k_scale, raw(name, "k_scale").reshape(2, 1))
        assert np.array_equal(heads.v_scale, raw(name, "v_scale").reshape(2, 1))
        assert heads.k_offset is None
        assert heads.q_scale is None
    both = scheme("llmc-w8a8-kv-attn_head-asym")
    assert np.array_equal(both.v_offset, raw("llmc-w8a8-kv-attn_head-asym", "v_zero_point").reshape(2, 1))
    dynamic = scheme("llmc-kv-token-dyn")
    assert dynamic.k_scale is None
    assert dynamic.v_scale is None


def test_q_scales_of_llm_compressor_are_never_used() -> None:
    """They are uninitialized memory in this file, so that the tool's own logits are NaN."""
    notes = open_checkpoint(DATA / "llmc-attn-attn_head-sym-stat").notes
    assert any("q_scale" in note for note in notes)
    logits = window_logits(load(DATA / "llmc-attn-attn_head-sym-stat"), torch.tensor(TOKENS))
    assert divergence(of_float("float"), torch.as_tensor(logits)) < INTEGER_ATTENTION


def test_tables_of_quark_before_rope_are_used_for_v_only() -> None:
    name = "quark-kv-tensor-asym"
    found = scheme(name)
    assert found.k_scale is None
    assert np.array_equal(found.v_scale, np.full((2, 1), raw(name, "v_proj.output_scale")))
    assert np.array_equal(found.v_offset, np.full((2, 1), raw(name, "v_proj.output_zero_point")))
    assert any("before RoPE" in note for note in open_checkpoint(DATA / name).notes)


def test_tables_of_quark_after_rope() -> None:
    name = "quark-kv-head-sym-postrope"
    found = scheme(name)
    assert np.array_equal(found.k_scale, raw(name, "k_proj.output_scale").reshape(2, 1))
    assert np.array_equal(found.v_scale, raw(name, "v_proj.output_scale").reshape(2, 1))
    assert open_checkpoint(DATA / name).notes == []


def test_tables_of_a_c8_cache_have_the_heads_outermost() -> None:
    name = "msms-c8-asym-logits"
    found = scheme(name)
    assert np.array_equal(found.k_scale, raw(name, "k_proj.kv_cache_scale").reshape(2, 16))
    assert np.array_equal(found.v_offset, raw(name, "v_proj.kv_cache_offset").reshape(2, 16))


@pytest.mark.parametrize(
    ("name", "static"),
    [
        ("msms-fa3-int8", "qkv"),
        ("msms-fa3-kv-int8", "kv"),
        ("msms-fa3-qdyn-kv-int8", "kv"),
        ("msms-fa3-int8-dynamic", ""),
        ("msms-fa3-qk-int8-vdyn", "qk"),
        ("msms-fa3-kv-dynamic", ""),
    ],
)
def test_types_of_attention_of_msmodelslim(name: str, static: str) -> None:
    found = scheme(name)
    for part in "qkv":
        table = getattr(found, f"{part}_scale")
        assert (table is not None) == (part in static)
        if table is not None:
            assert np.array_equal(table, raw(name, f"fa_{part}.scale"))
    assert (found.p_levels == 127) == (static == "qkv"), "MindIE's kernel has calibrated q, k and v"


def test_signs_of_scales_are_kept() -> None:
    """auto-round writes negative scales and weights of -128, which have no opposite."""
    opened = open_checkpoint(DATA / "autoround-w8a8")
    table: Any = opened.linear("model.layers.0.mlp.down_proj")
    assert (table.scale < 0).any()
    assert (table.weight == -128).any()


def test_multipliers_of_modelopt_are_used() -> None:
    opened = open_checkpoint(DATA / "modelopt-int8sq")
    table: Any = opened.linear("model.layers.0.self_attn.o_proj")
    key = "model.layers.0.self_attn.o_proj.pre_quant_scale"
    assert np.array_equal(table.input_multiplier, wide(opened.files.read(key)))
    plain: Any = open_checkpoint(DATA / "modelopt-int8-default").linear("model.layers.0.self_attn.o_proj")
    assert plain.input_multiplier is None


def test_modelopt_s_older_files_describe_the_quantization_beside_config_json(tmp_path: Path) -> None:
    directory = edited("modelopt-int8sq", tmp_path / "model", config=lambda raw: raw.pop("quantization_config"))
    assert format_of(Source.of(directory)).name == "modelopt"
    assert open_checkpoint(directory).quant_type == "W8A8"


def test_older_files_name_the_quantization_compression_config(tmp_path: Path) -> None:
    for name in ("llmc-w8a8-kv", "quark-kv-tensor-asym"):
        directory = edited(
            name, tmp_path / name, config=lambda raw: raw.update(compression_config=raw.pop("quantization_config"))
        )
        assert open_checkpoint(directory).schemes[0] is not None


def test_attention_of_some_layers_only_stays_float_in_the_others(tmp_path: Path) -> None:
    def first_only(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.layers.1.") and "output_" in key]:
            del tensors[key]

    def excluded(raw: dict[str, Any]) -> None:
        raw["quantization_config"]["exclude"] += ["model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"]

    directory = edited("quark-kv-head-sym-postrope", tmp_path / "model", first_only, excluded)
    schemes = open_checkpoint(directory).schemes
    assert schemes[0] is not None
    assert schemes[1] is None


@pytest.mark.parametrize("path", sorted(DATA.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_the_format_knows_itself(path: Path) -> None:
    name = path.parent.name
    opened: Opened = open_checkpoint(path.parent)
    assert opened.format == FORMATS.get(name.partition("-")[0], name.partition("-")[0])
    assert opened.is_float == (opened.format == "float")
