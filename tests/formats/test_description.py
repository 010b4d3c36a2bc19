"""The description of a quantized checkpoint: golden ones round-trip, wrong ones are refused with the tensor's name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from faquant.checkpoint.shards import write_json
from faquant.checkpoint.tensors import TensorFiles
from faquant.errors import CheckpointError, FaquantError, UnsupportedError
from faquant.formats.msmodelslim.description import (
    TENSOR_TYPES,
    Description,
    effective_fa_quant_type,
    read_description,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
QUANTIZED = ["w8a8_fa_fp32_ascendV1", "w8a8_fa_bf16_ascendV1"]
NAME, OLD_NAME = "quant_model_description.json", "quant_model_description_w8a8.json"
WEIGHTS = "quant_model_weight_w8a8.safetensors"
HEAD = {"version": "1.0.0", "model_quant_type": "W8A8"}
LAYER = "model.layers.0.self_attn"


def parse(**values: Any) -> Description:
    return Description.from_json({**HEAD, **values})


@pytest.mark.parametrize("name", QUANTIZED)
def test_golden(name: str) -> None:
    description = read_description(GOLDEN / name)
    assert description is not None
    assert (description.version, description.model_quant_type) == ("1.0.0", "W8A8")
    assert (description.fa_quant_type, description.kv_cache_type) == ("FAQuant", None)
    assert len(description.tensor_types) == 156
    assert description.tensor_types[f"{LAYER}.fa_k.scale"] == "FAQuant"
    assert (description.metadata, description.extra) == ({}, {})
    description.check_against(TensorFiles.open(GOLDEN / name))
    assert effective_fa_quant_type({}, description) == "FAQuant"


@pytest.mark.parametrize("name", QUANTIZED)
def test_golden_round_trip(tmp_path: Path, name: str) -> None:
    description = read_description(GOLDEN / name)
    assert description is not None
    write_json(tmp_path / NAME, description.to_json())
    assert (tmp_path / NAME).read_bytes() == (GOLDEN / name / NAME).read_bytes() + b"\n"
    assert read_description(tmp_path) == description


def test_float_model_has_none(tmp_path: Path) -> None:
    assert read_description(GOLDEN / "float_float32") is None
    with pytest.raises(CheckpointError, match="No such file"):
        read_description(tmp_path / "absent")


def test_quantized_weights_need_one(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / QUANTIZED[0] / WEIGHTS, tmp_path)
    with pytest.raises(CheckpointError, match=f"no {NAME}"):
        read_description(tmp_path)


def test_names_of_the_file(tmp_path: Path) -> None:
    (tmp_path / OLD_NAME).write_text(json.dumps(HEAD))
    assert read_description(tmp_path) == parse()
    (tmp_path / NAME).write_text(json.dumps(HEAD, indent=1))
    assert read_description(tmp_path) == parse()
    (tmp_path / OLD_NAME).write_text(json.dumps({**HEAD, "a.weight": "FLOAT"}))
    with pytest.raises(CheckpointError, match="differ"):
        read_description(tmp_path)


def test_order_of_keys() -> None:
    raw = {
        "version": "1.0.0",
        "model_quant_type": "W8A8_DYNAMIC",
        "fa_quant_type": "FAQuant",
        "kv_cache_type": "C8",
        "kv_quant_type": "C8",
        "group_size": 0,
        "optional": {"a.b": 1},
        "some_switch": False,
        "metadata": {"faquant": {"format": 1}},
        "b.weight": "FAQUANT_W8A8_DYNAMIC_ROTATED",
        "a.weight": "FLOAT",
        "lm_head": "FLOAT",
    }
    description = Description.from_json(raw)
    assert list(description.to_json().items()) == list(raw.items())
    assert list(description.extra) == ["kv_quant_type", "group_size", "optional", "some_switch"]
    assert list(description.tensor_types) == ["b.weight", "a.weight", "lm_head"]


def test_what_the_newer_writer_says() -> None:
    """msmodelslim's pipeline of processors uses another name for the attention's type, and lists it for each layer,
    too."""
    raw = {**HEAD, "fa_quant_type": "FAKQuant", f"{LAYER}.quant_type": "INT8", f"{LAYER}.fa_k.scale": "FAQuant"}
    description = Description.from_json(raw)
    assert list(description.tensor_types) == [f"{LAYER}.fa_k.scale"]
    assert description.to_json() == raw
    assert effective_fa_quant_type({}, description) == "FAQuant"
    assert effective_fa_quant_type({"fa_quant_type": "FAKQuant"}, description) == "FAQuant"


def test_what_is_absent_stays_absent() -> None:
    assert Description.from_json({"model_quant_type": "FLOAT"}).to_json() == {"model_quant_type": "FLOAT"}
    assert Description.from_json({"model_quant_type": "FLOAT", "fa_quant_type": None}).fa_quant_type is None


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"a.weight": "W4A4"}, UnsupportedError, "'a.weight' has type 'W4A4'"),
        ({"a.weight": "w8a8"}, UnsupportedError, "'a.weight' has type 'w8a8'"),
        ({"a.weight": 8}, CheckpointError, "'a.weight' must be a string, not 8"),
        ({"a.weight": None}, CheckpointError, "'a.weight' must be a string"),
        ({"a.weight": ["FLOAT"]}, CheckpointError, "'a.weight' must be a string"),
        ({"model_quant_type": "W4A16"}, UnsupportedError, "model_quant_type 'W4A16'"),
        ({"model_quant_type": None}, CheckpointError, "no model_quant_type"),
        ({"model_quant_type": ["W8A8"]}, CheckpointError, "model_quant_type must be a string"),
        ({"fa_quant_type": "FAVQuant"}, UnsupportedError, "fa_quant_type 'FAVQuant'"),
        ({f"{LAYER}.quant_type": 8}, CheckpointError, "self_attn.quant_type must be a string"),
        ({"fa_quant_type": ""}, UnsupportedError, "fa_quant_type ''"),
        ({"fa_quant_type": True}, CheckpointError, "fa_quant_type must be a string"),
        ({"kv_cache_type": "C4"}, UnsupportedError, "kv_cache_type 'C4'"),
        ({"version": "2.0.0"}, UnsupportedError, "version '2.0.0'"),
        ({"version": 1}, CheckpointError, "version must be a string"),
        ({"metadata": "x"}, CheckpointError, "metadata must be an object"),
        ({"model_quant_type": "FLOAT", "a.weight": "W8A8"}, CheckpointError, "'a.weight' has type W8A8"),
    ],
)
def test_wrong_values(values: dict[str, Any], error: type[FaquantError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(**values)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(TENSOR_TYPES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["version", "model_quant_type", "fa_quant_type", "metadata", "kv_cache_type", "a.weight"])


@given(st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=6))
def test_anything_is_read_or_refused(raw: dict[str, Any]) -> None:
    for value in (raw, {**HEAD, **raw}):
        try:
            description = Description.from_json(value)
        except FaquantError:
            continue
        assert Description.from_json(description.to_json()) == description


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff{}",
        b"[" * 100_000,
        b'{"model_quant_type": "W8A8", "a.weight": "W8A8", "a.weight": "FLOAT"}',
        b'{"model_quant_type": "W8A8", "n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(CheckpointError, match=NAME):
        read_description(tmp_path)


def test_no_plain_file(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    path = directory / NAME
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="regular file"):
        read_description(directory)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="regular file"):
        read_description(directory)
    path.rmdir()
    (tmp_path / NAME).write_text(json.dumps(HEAD))
    path.symlink_to(f"../{NAME}")
    with pytest.raises(CheckpointError, match="leads out"):
        read_description(directory)
    path.unlink()
    path.touch()
    os.truncate(path, 100 << 30)
    with pytest.raises(CheckpointError, match="larger than"):
        read_description(directory)


def put(directory: Path, tensors: dict[str, torch.Tensor]) -> TensorFiles:
    save_file(tensors, directory / WEIGHTS)
    return TensorFiles.open(directory)


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    source = GOLDEN / QUANTIZED[0]
    tensors = load_file(source / WEIGHTS)
    description = read_description(source)
    assert description is not None
    gone = [name for name in description.tensor_types if name.endswith("quant_bias")]
    files = put(tmp_path, {name: tensor for name, tensor in tensors.items() if name not in gone})
    with pytest.raises(CheckpointError, match=rf"{len(gone)} described tensors are missing, '{gone[0]}'.*…"):
        description.check_against(files)
    files = put(tmp_path, {**tensors, "more.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 tensors are not in the description, 'more\.weight'\."):
        description.check_against(files)


INT8, INT32, INT64 = torch.int8, torch.int32, torch.int64
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("name", "kind", "fine", "wrong"),
    [
        ("q_proj.weight", "W8A8", [INT8], [F32, torch.uint8, INT32]),
        ("q_proj.weight", "W8A8_DYNAMIC", [INT8], [BF16]),
        ("q_proj.weight", "FAQUANT_W8A8_DYNAMIC_ROTATED", [INT8], [BF16]),
        ("q_proj.weight", "FAQUANT_W8A8_ASYMMETRIC_DYNAMIC", [INT8], [BF16]),
        ("q_proj.weight", "FAQUANT_W8A8_ASYMMETRIC_DYNAMIC_ROTATED", [INT8], [BF16]),
        ("q_proj.weight", "FAQUANT_W8A16_DYNAMIC", [INT8], [BF16]),
        ("q_proj.weight", "FAQUANT_W8A16_DYNAMIC_ROTATED", [INT8], [BF16]),
        ("q_proj.weight_scale", "W8A8", [F32, BF16, F16], [INT8, INT64]),
        ("q_proj.weight_offset", "W8A8_DYNAMIC", [F32, BF16, INT8], [INT64]),
        ("q_proj.input_scale", "W8A8", [F32, BF16], [INT8]),
        ("q_proj.input_offset", "W8A8", [F32, BF16, INT8], [INT32]),
        ("q_proj.quant_bias", "W8A8", [INT32], [F32, INT64]),
        ("q_proj.deq_scale", "W8A8", [F32, INT64], [BF16, INT32]),
        ("q_proj.bias", "W8A8_DYNAMIC", [F32, BF16], [INT32]),
        ("o_proj.weight", "FLOAT", [F32, BF16, F16], [INT8, torch.bool]),
        ("fa_q.scale", "FAQuant", [F32, BF16, F16], [INT8]),
        ("fa_k.offset", "FAQuant", [F32, BF16, F16, INT8], [INT32]),
        ("fa_k.center", "FAQuant", [F32], [INT8]),
        ("fa_k.equalizer", "FAQuant", [F32], [INT8]),
        ("fa_k.rotation_sign", "FAQuant", [INT8], [F32]),
        ("k_scale", "FAQuant", [F16], [INT8]),
        ("k_proj.kv_cache_scale", "C8", [F32, BF16], [INT8]),
        ("k_proj.kv_cache_offset", "C8", [F32, INT8], [INT64]),
    ],
)
def test_dtypes(tmp_path: Path, name: str, kind: str, fine: list[torch.dtype], wrong: list[torch.dtype]) -> None:
    tensor = f"{LAYER}.{name}"
    description = parse(**{tensor: kind})
    for dtype in fine:
        description.check_against(put(tmp_path, {tensor: torch.ones(2, dtype=dtype)}))
    for dtype in wrong:
        files = put(tmp_path, {tensor: torch.ones(2, dtype=dtype)})
        with pytest.raises(CheckpointError, match=rf"'{tensor}' has type {kind}, so its dtype should be"):
            description.check_against(files)


FA = parse(fa_quant_type="FAQuant", **{f"{LAYER}.fa_k.scale": "FAQuant"})
OLD_FA = parse(**{f"{LAYER}.fa_k.scale": "FAQuant"})
PLAIN = parse(**{"lm_head.weight": "FLOAT"})


def nested(value: Any) -> dict[str, Any]:
    return {"quantize": "w8a8", "quantization_config": {"fa_quant_type": value, "group_size": 0}}


@pytest.mark.parametrize(
    ("config", "description", "expected"),
    [
        ({}, FA, "FAQuant"),
        ({"fa_quant_type": "FAQuant"}, FA, "FAQuant"),
        (nested("FAQuant"), FA, "FAQuant"),
        (nested("FAQuant"), OLD_FA, "FAQuant"),
        ({"quantization_config": None}, FA, "FAQuant"),
        ({}, parse(fa_quant_type="FAQuant"), "FAQuant"),
        ({}, PLAIN, None),
        ({"fa_quant_type": None}, PLAIN, None),
        ({}, None, None),
        (nested(None), None, None),
    ],
)
def test_effective_fa_quant_type(config: dict[str, Any], description: Description | None, expected: str | None) -> None:
    assert effective_fa_quant_type(config, description) == expected


@pytest.mark.parametrize(
    ("config", "description", "message"),
    [
        ({"fa_quant_type": None}, FA, "config.json: fa_quant_type is null.*Remove it"),
        (nested(None), FA, "quantization_config: fa_quant_type is null"),
        ({"fa_quant_type": "FAQuant", **nested(None)}, OLD_FA, "quantization_config: fa_quant_type is null"),
        ({"fa_quant_type": "FAQuant"}, PLAIN, "no description of FAQuant tensors"),
        ({"fa_quant_type": "FAQuant"}, None, "no description of FAQuant tensors"),
        ({}, OLD_FA, "fa_quant_type is not set"),
        ({"fa_quant_type": None}, OLD_FA, "fa_quant_type is not set"),
        ({"fa_quant_type": 1}, FA, "must be a string"),
    ],
)
def test_contradictions(config: dict[str, Any], description: Description | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        effective_fa_quant_type(config, description)


def test_unknown_fa_quant_type_in_config() -> None:
    with pytest.raises(UnsupportedError, match="'FAQuant2'"):
        effective_fa_quant_type({"fa_quant_type": "FAQuant2"}, FA)
