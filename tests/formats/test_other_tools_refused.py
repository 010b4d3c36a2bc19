"""Checkpoints of other tools that are refused by their configuration: other types, wrong values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from faquant.formats import open_checkpoint
from oracles.interop import DATA, Quantization, edited, group

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


@pytest.mark.parametrize("path", sorted((DATA / "refused").glob("*.json")), ids=lambda path: path.stem)
def test_real_configurations_in_other_types_are_refused(path: Path, tmp_path: Path) -> None:
    def replace(raw: dict[str, Any]) -> None:
        raw["quantization_config"] = json.loads(path.read_text())["quantization_config"]

    with pytest.raises(UnsupportedError, match=r"is not supported|W8A16"):
        open_checkpoint(edited("float", tmp_path / "model", config=replace))
