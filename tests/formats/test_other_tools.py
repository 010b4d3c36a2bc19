"""Checkpoints as other quantizers write them: the tools' own logits, their tables, and what is refused.

The logits are those of the tool's own fake-quantized model, run in float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from faquant.evaluation.divergence import window_logits
from faquant.formats import format_of, open_checkpoint
from faquant.formats.base import Opened, Source
from faquant.kernels.cpu import CpuBackend
from faquant.model.inspection import inspect
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


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_are_the_tool_s(name: str) -> None:
    """With float attention over the cache's K and V; with integer attention within its rounding."""
    if name in OTHER_ARITHMETIC:
        pytest.skip(OTHER_ARITHMETIC[name])
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


Quantization = dict[str, Any]
REFUSED: dict[str, tuple[str, Callable[[Quantization], object], str]] = {
    "weights in 4 bits": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(num_bits=4), "INT4 is not supported"),
    "FP8": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(type="float"), "FP8 is not supported"),
    "FP8 cache": ("llmc-w8a8-kv", lambda q: q["kv_cache_scheme"].update(type="float"), "kv_cache_scheme: FP8"),
    "weights only": ("llmc-w8a8-kv", lambda q: group(q).update(input_activations=None), "W8A16"),
    "scales per group": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(strategy="group"), "per group"),
    "groups of inputs": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(group_size=32), "per group"),
    "asymmetric weights": ("llmc-w8a8-kv", lambda q: group(q)["weights"].update(symmetric=False), "zero points"),
    "dynamic zero points": (
        "llmc-w8a8-kv",
        lambda q: group(q)["input_activations"].update(symmetric=False),
        "with zero points",
    ),
    "one dynamic scale": (
        "llmc-w8a8-kv",
        lambda q: group(q)["input_activations"].update(strategy="tensor"),
        "per token, not per tensor",
    ),
    "outputs": ("llmc-w8a8-kv", lambda q: group(q).update(output_activations={"num_bits": 8}), "output_activations"),
    "packed weights": ("llmc-w8a8-kv", lambda q: group(q).update(format="pack-quantized"), "pack-quantized"),
    "not compressed": ("llmc-w8a8-kv", lambda q: q.update(quantization_status="calibration"), "'calibration'"),
    "sparse": ("llmc-w8a8-kv", lambda q: q.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
    "rotated at run time": (
        "llmc-w8a8-kv",
        lambda q: q.update(transform_config={"config_groups": {"R3": {"apply": [{"location": "k_cache"}]}}}),
        "transform at run time",
    ),
    "a quantized cache per group": (
        "llmc-w8a8-kv",
        lambda q: q["kv_cache_scheme"].update(strategy="group"),
        "strategy 'group'",
    ),
    "an algorithm in 4 bits": ("modelopt-int8sq", lambda q: q.update(quant_algo="W4A8_AWQ"), "quant_algo 'W4A8_AWQ'"),
    "a cache in FP8": ("modelopt-int8sq", lambda q: q.update(kv_cache_quant_algo="FP8"), "cache in 'FP8'"),
    "an FP8 cache of Quark": (
        "quark-kv-tensor-asym",
        lambda q: q["layer_quant_config"]["*k_proj"]["output_tensors"].update(dtype="fp8_e4m3"),
        "FP8_E4M3 is not supported",
    ),
    "a quantized softmax": (
        "quark-kv-tensor-asym",
        lambda q: q.update(softmax_quant_spec={"dtype": "int8"}),
        "softmax",
    ),
    "fake-quantized weights": (
        "quark-kv-tensor-asym",
        lambda q: q["export"].update(weight_format="fake_quantized"),
        "fake_quantized",
    ),
    "only K": ("quark-kv-tensor-asym", lambda q: q["exclude"].append("*v_proj"), "v_proj"),
}


def group(table: Quantization) -> Quantization:
    found: Quantization = table["config_groups"]["group_0"]
    return found


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_kernel_is_refused_as_what_it_is(case: str, tmp_path: Path) -> None:
    name, edit, message = REFUSED[case]
    directory = edited(name, tmp_path / "model", config=lambda raw: edit(raw["quantization_config"]))
    (directory / "hf_quant_config.json").unlink(missing_ok=True)  # it would contradict the edit
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no object": ("llmc-w8a8-kv", lambda c: c.update(quantization_config="int8"), "must be an object, not 'int8'"),
    "a group that is no object": ("llmc-w8a8-kv", lambda c: quantized(c)["config_groups"].update(g=1), "g must be an"),
    "a flag as text": (
        "llmc-w8a8-kv",
        lambda c: group(quantized(c))["weights"].update(symmetric="false"),
        "group_0, weights: symmetric must be true or false",
    ),
    "a local scale": ("llmc-w8a8-kv", lambda c: quantized(c)["kv_cache_scheme"].update(dynamic="local"), "'local'"),
    "no strategy": ("llmc-w8a8-kv", lambda c: group(quantized(c))["weights"].pop("strategy"), "has no strategy"),
    "an invalid expression": (
        "llmc-w8a8-kv",
        lambda c: quantized(c).update(ignore=["re:model.(layers"]),
        r"ignore has 're:model\.\(layers', which is not a valid regular expression",
    ),
    "names that are no list": ("modelopt-int8sq", lambda c: quantized(c).update(ignore="lm_head"), "ignore must be a"),
    "a cache before or after RoPE": (
        "quark-kv-tensor-asym",
        lambda c: quantized(c).update(kv_cache_post_rope="false"),
        "kv_cache_post_rope must be true or false",
    ),
    "a pattern that is no object": (
        "quark-kv-tensor-asym",
        lambda c: quantized(c)["layer_quant_config"].update({"*k_proj": []}),
        r"layer_quant_config: \*k_proj must be an object",
    ),
}


def quantized(config: dict[str, Any]) -> Quantization:
    found: Quantization = config["quantization_config"]
    return found


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named_by_their_place(case: str, tmp_path: Path) -> None:
    name, edit, message = WRONG[case]
    directory = edited(name, tmp_path / "model", config=lambda raw: (edit(raw), None)[1])
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(directory)
    assert str(caught.value).startswith(f"{directory}/config.json")


def test_older_files_name_the_quantization_compression_config(tmp_path: Path) -> None:
    for name in ("llmc-w8a8-kv", "quark-kv-tensor-asym"):
        directory = edited(
            name, tmp_path / name, config=lambda raw: raw.update(compression_config=raw.pop("quantization_config"))
        )
        assert open_checkpoint(directory).schemes[0] is not None


@pytest.mark.parametrize("path", sorted((DATA / "refused").glob("*.json")), ids=lambda path: path.stem)
def test_real_configurations_in_other_types_are_refused(path: Path, tmp_path: Path) -> None:
    def replace(raw: dict[str, Any]) -> None:
        raw["quantization_config"] = json.loads(path.read_text())["quantization_config"]

    with pytest.raises(UnsupportedError, match=r"is not supported|W8A16"):
        open_checkpoint(edited("float", tmp_path / "model", config=replace))


def keep(_: Any) -> None:
    """No edit."""


CONTRADICTIONS: dict[str, tuple[str, Callable[[Tensors], object], Callable[[Quantization], object], str]] = {
    "static, described as dynamic": (
        "llmc-w8a8-static-asym",
        keep,
        lambda q: group(q)["input_activations"].update(dynamic=True, strategy="token", symmetric=True),
        "description does not name",
    ),
    "inputs without their zero points": (
        "llmc-w8a8-static-asym",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("input_zero_point")],
        keep,
        "input_zero_point",
    ),
    "Quark's inputs without their zero points": (
        "quark-w8a8-static-asym-input",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("input_zero_point")],
        keep,
        "input_zero_point",
    ),
    "K and V without their zero points": (
        "llmc-kv-tensor-asym-stat",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("_zero_point")],
        keep,
        "k_zero_point",
    ),
    "C8 without zero points": (
        "msms-c8-asym-logits",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("kv_cache_offset")],
        keep,
        "kv_cache_offset",
    ),
    "zero points that the description denies": (
        "llmc-kv-tensor-asym-stat",
        keep,
        lambda q: q["kv_cache_scheme"].update(symmetric=True),
        "is not zero",
    ),
    "C8 without scales": (
        "msms-c8-asym-logits",
        lambda t: [t.pop(key) for key in [*t] if key.endswith("kv_cache_scale")],
        keep,
        "kv_cache_scale",
    ),
    "a multiplier that is an integer": (
        "modelopt-int8sq",
        lambda t: t.update({f"{L}mlp.down_proj.pre_quant_scale": torch.ones(128, dtype=torch.int32)}),
        keep,
        "must be float32",
    ),
    "a multiplier of zero": (
        "modelopt-int8sq",
        lambda t: t[f"{L}mlp.down_proj.pre_quant_scale"].zero_(),
        keep,
        "zero",
    ),
    "no targets": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(targets=[]),
        "without quantized weights",
    ),
    "an attention without inputs": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(input_activations=None),
        "only q, K and V",
    ),
    "a zero point that is not whole": (
        "msms-c8-asym-logits",
        lambda t: t[f"{L}self_attn.k_proj.kv_cache_offset"].add_(0.5),
        keep,
        "not a whole number",
    ),
    "tables of a dynamic cache": (
        "llmc-w8a8-kv",
        keep,
        lambda q: q["kv_cache_scheme"].update(dynamic=True),
        "description does not name",
    ),
    "attention without a cache": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: q.update(kv_cache_scheme=None),
        "no kv_cache_scheme",
    ),
    "a projection of attention without weights": (
        "llmc-attn-attn_head-sym-stat",
        keep,
        lambda q: group(q).update(targets=["re:.*self_attn.q_proj"]),
        "without quantized weights",
    ),
    "an int8 embedding": (
        "llmc-w8a8-kv",
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.int8)}),
        keep,
        "must be a float type",
    ),
    "int8 in an ignored layer": (
        "modelopt-int8sq",
        lambda t: [t.pop(f"{L}mlp.up_proj.{part}") for part in ("weight_scale", "input_scale", "pre_quant_scale")],
        lambda q: q["ignore"].extend([f"{L}mlp.up_proj", f"{L}mlp.gate_proj"]),
        "gate_proj",
    ),
    "a multiplier that is lost": (
        "modelopt-int8sq",
        lambda t: t.pop(f"{L}self_attn.k_proj.pre_quant_scale"),
        keep,
        "some have none",
    ),
    "two descriptions": ("modelopt-int8sq", keep, lambda q: q.update(kv_cache_quant_algo="FP8"), "other quantizations"),
    "rotations of Quark at run time": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q.update(algo_config=[{"name": "quarot"}]),
        "rotations at run time",
    ),
    "R4 of Quark": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q.update(algo_config=[{"name": "rotation", "r1": True, "r4": True}]),
        "rotations at run time",
    ),
    "Quark's biases": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q["global_quant_config"].update(bias={"dtype": "int32"}),
        "biases",
    ),
    "Quark's inputs of float weights": (
        "quark-w8a8-dyn-token",
        keep,
        lambda q: q["global_quant_config"].update(weight=None),
        "float weights",
    ),
    "RoPE's side as a string": (
        "quark-kv-tensor-asym",
        keep,
        lambda q: q.update(kv_cache_post_rope="false"),
        "true or false",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_description_and_tensors_that_contradict_each_other_are_refused(case: str, tmp_path: Path) -> None:
    name, tensors, quantization, message = CONTRADICTIONS[case]
    directory = edited(
        name,
        tmp_path / "model",
        lambda found: (tensors(found), None)[1],
        lambda raw: quantization(raw.get("quantization_config", {})),
    )
    if name.startswith("msms"):
        path = directory / "quant_model_description.json"
        kept = set(load_file(next(directory.glob("quant_*.safetensors"))))
        described = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in described.items() if v != "C8" or k in kept or "." not in k}))
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


def test_descriptions_that_say_the_same_differently_are_accepted(tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[Quantization], object]]] = [
        ("llmc-w8a8-kv", lambda q: q.update(quantization_status="frozen")),
        ("llmc-w8a8-kv", lambda q: group(q).update(targets=["re:.*_proj$"])),
        ("quark-w8a8-dyn-token", lambda q: q.update(algo_config=[{"name": "rotation", "r1": True, "r2": True}])),
    ]
    for number, (name, edit) in enumerate(cases):
        directory = edited(name, tmp_path / str(number), config=lambda raw, e=edit: e(raw["quantization_config"]))
        assert same_logits(directory, DATA / name)


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


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("msms-c8-asym-logits", {"kv_cache_type": None}, "kv_cache_type is not set"),
        ("msms-fa3-int8", {f"{ATTN.format(0)}fa_q.other": "FAQuant"}, "fa_q.other"),
    ],
)
def test_tables_that_would_not_be_used_are_refused(
    name: str, edit: dict[str, Any], message: str, tmp_path: Path
) -> None:
    added = {key: torch.ones(1) for key in edit if "." in key}
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update(added))
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(FaquantError, match=message):
        open_checkpoint(directory)


UNKNOWN = (
    "model.layers.0.self_attn.attn_sub_norm.weight",
    "model.layers.0.self_attn.sinks",
    "model.layers.0.self_attn.q_proj.lora_A.weight",
    "model.layers.0.mlp.up_proj.weight_scale",
    "model.layers.0.self_attn.k_scale",
    "model.layers.0.input_layernorm.bias",
    "model.norm.bias",
    "model.layers.0.mlp.gate.weight",
    "score.weight",
)


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("name", ["float", "modelopt-int8-default"])
def test_tensors_that_the_architecture_does_not_have_are_refused_by_name(
    unknown: str, name: str, tmp_path: Path
) -> None:
    if name != "float" and unknown.endswith("up_proj.weight_scale"):
        pytest.skip("this format has it")
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update({unknown: torch.ones(4)}))
    with pytest.raises(UnsupportedError, match=unknown):
        open_checkpoint(directory)


def test_a_description_does_not_make_a_tensor_known(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.sinks"
    directory = edited("msms-fa3-kv-int8", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(4)}))
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "FLOAT"}))
    with pytest.raises(UnsupportedError, match=name):
        open_checkpoint(directory)


def test_harmless_tensors_are_ignored_and_listed(tmp_path: Path) -> None:
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
    directory = edited(
        "float", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(8) for name in names})
    )
    assert sorted(open_checkpoint(directory).ignored) == sorted(names)


def same_logits(a: Path, b: Path) -> bool:
    tokens = torch.tensor(TOKENS)
    return bool(np.array_equal(window_logits(load(a), tokens), window_logits(load(b), tokens)))


def test_a_directory_saved_from_the_base_model_loads(tmp_path: Path) -> None:
    def without_prefix(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    directory = edited("float", tmp_path / "base", without_prefix, lambda raw: raw.update(architectures=["LlamaModel"]))
    assert same_logits(directory, DATA / "float")


def test_a_tied_model_with_only_a_head_loads(tmp_path: Path) -> None:
    def tied(raw: dict[str, Any]) -> None:
        raw["tie_word_embeddings"] = True

    def only_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    head = edited("float", tmp_path / "head", only_head, tied)
    embedding = edited("float", tmp_path / "embedding", lambda tensors: (tensors.pop("lm_head.weight"), None)[1], tied)
    assert same_logits(head, embedding)


def test_a_head_that_is_missing_from_an_untied_model_is_an_error(tmp_path: Path) -> None:
    directory = edited("float", tmp_path / "model", lambda tensors: (tensors.pop("lm_head.weight"), None)[1])
    with pytest.raises(CheckpointError, match=r"no lm_head\.weight"):
        open_checkpoint(directory)


@pytest.mark.parametrize("path", sorted(DATA.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_the_format_knows_itself(path: Path) -> None:
    name = path.parent.name
    opened: Opened = open_checkpoint(path.parent)
    assert opened.format == FORMATS.get(name.partition("-")[0], name.partition("-")[0])
    assert opened.is_float == (opened.format == "float")


@pytest.mark.parametrize("name", ["float", "llmc-w8a8-kv", "quark-kv-tensor-asym", "msms-fa3-int8"])
def test_values_that_are_not_finite_are_found_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    key = "model.norm.weight"
    directory = edited(name, tmp_path / "model", lambda tensors: tensors.update({key: torch.full((64,), torch.nan)}))
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        inspect(directory)
    with pytest.raises(CheckpointError, match=f"{key} holds NaN"):
        open_checkpoint(directory).check_values()


def test_large_checkpoints_are_not_searched_by_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faquant.formats.base.MAX_CHECKED_BYTES", 1000)
    assert not inspect(DATA / "float").values_checked
    monkeypatch.undo()
    assert inspect(DATA / "float").values_checked


def test_tables_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    """llm-compressor writes uninitialized memory as q_scale."""
    keys = [f"model.layers.{layer}.self_attn.q_scale" for layer in range(2)]
    directory = edited(
        "llmc-attn-attn_head-sym-stat",
        tmp_path / "model",
        lambda tensors: tensors.update({key: torch.full((4, 1, 1), torch.nan, dtype=torch.bfloat16) for key in keys}),
    )
    assert set(keys) <= set(inspect(directory).ignored)
    assert same_logits(directory, DATA / "llmc-attn-attn_head-sym-stat")


def described(directory: Path, **values: object) -> Path:
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


def test_a_norm_is_no_table(tmp_path: Path) -> None:
    directory = described(edited("msms-fa3-kv-int8", tmp_path / "model"), **{"model.norm.weight": "FAQuant"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has type FAQuant"):
        open_checkpoint(directory)


def test_a_table_under_two_names_is_refused(tmp_path: Path) -> None:
    name = f"{L}self_attn.k_scale"
    directory = edited("msms-fa3-kv-int8", tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(2, 1)}))
    with pytest.raises(CheckpointError, match="There are both"):
        open_checkpoint(described(directory, **{name: "FAQuant"}))


def test_types_of_attention_are_those_of_the_base_model_s_layers_too(tmp_path: Path) -> None:
    def without_prefix(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[key.removeprefix("model.")] = tensors.pop(key)

    directory = edited("msms-fa3-kv-int8", tmp_path / "base", without_prefix)
    path = directory / "quant_model_description.json"
    path.write_text(json.dumps({k.removeprefix("model."): v for k, v in json.loads(path.read_text()).items()}))
    assert same_logits(directory, DATA / "msms-fa3-kv-int8")
