"""config.json: how it is parsed, and that invalid content raises one clear error."""

from typing import Any

import pytest

from faquant.checkpoint.families import FAMILIES
from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.checkpoint.rope_config import RopeConfig
from faquant.errors import UnsupportedError
from oracles.configs import (
    GRANITE,
    LLAMA,
    LLAMA3,
    MISTRAL,
    QWEN2,
    QWEN3,
    SMOLLM3,
    YARN,
    error_of,
)


def test_a_llama_configuration_is_read() -> None:
    assert parse_config(LLAMA) == ModelConfig(
        model_type="llama",
        vocab_size=32000,
        hidden_size=256,
        intermediate_size=704,
        num_layers=4,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        rms_norm_eps=1e-5,
        max_position=2048,
        rope=RopeConfig("default", 10000.0, original_max_position=2048),
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * 4,
        dtype="bfloat16",
        eos_token_ids=(2,),
        bos_token_id=1,
    )


def test_group_size_is_query_heads_for_each_kv_head() -> None:
    assert parse_config(LLAMA).group_size == 4


@pytest.mark.parametrize(
    ("raw", "qkv", "o", "mlp", "qk_norm"),
    [
        (LLAMA, False, False, False, False),
        ({**LLAMA, "attention_bias": True, "mlp_bias": True}, True, True, True, False),
        ({**MISTRAL, "attention_bias": True, "mlp_bias": True}, False, False, False, False),
        ({**QWEN2, "attention_bias": False, "mlp_bias": True}, True, False, False, False),
        (QWEN3, False, False, False, True),
        ({**QWEN3, "attention_bias": True}, True, True, False, True),
        ({**SMOLLM3, "attention_bias": True, "mlp_bias": True}, True, True, True, False),
        ({**GRANITE, "attention_bias": True, "mlp_bias": True}, True, True, True, False),
    ],
)
def test_biases_and_norms_are_those_that_transformers_gives_the_type(
    raw: dict[str, Any], qkv: bool, o: bool, mlp: bool, qk_norm: bool
) -> None:
    config = parse_config(raw)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (qkv, o, mlp, qk_norm)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({}, 32), ({"head_dim": None}, 32), ({"head_dim": 80}, 80), ({"head_dim": 80, "hidden_size": 250}, 80)],
)
def test_head_dim_is_the_named_one_or_hidden_size_over_heads(keys: dict[str, Any], expected: int) -> None:
    assert parse_config({**LLAMA, **keys}).head_dim == expected


def test_kv_heads_are_as_many_as_heads_where_llama_does_not_name_them() -> None:
    for raw in ({**LLAMA, "num_key_value_heads": None}, {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}):
        assert parse_config(raw).num_kv_heads == 8
    assert parse_config({**MISTRAL, "num_key_value_heads": None}).num_kv_heads == 8


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({"dtype": None}, "bfloat16"),
        ({"torch_dtype": None}, "float32"),
    ],
)
def test_dtype_wins_over_torch_dtype(keys: dict[str, Any], expected: str) -> None:
    assert parse_config({**LLAMA, **keys}).dtype == expected


@pytest.mark.parametrize(("value", "expected"), [(None, ()), (7, (7,)), (0, (0,)), ([7, 9], (7, 9)), ([], ())])
def test_end_tokens_are_one_or_several_or_none(value: Any, expected: tuple[int, ...]) -> None:
    assert parse_config({**LLAMA, "eos_token_id": value}).eos_token_ids == expected


SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@pytest.mark.parametrize("key", ["model_type", *SIZES])
def test_a_missing_key_is_named(key: str) -> None:
    assert error_of({k: v for k, v in LLAMA.items() if k != key}) == f"models/x/config.json has no {key}."
    assert error_of({**LLAMA, key: None}) == f"models/x/config.json has no {key}."


@pytest.mark.parametrize(
    ("raw", "key"),
    [(MISTRAL, "num_key_value_heads"), (QWEN2, "num_key_value_heads"), (QWEN3, "head_dim")],
    ids=["mistral", "qwen2", "qwen3"],
)
def test_a_size_that_is_not_guessed_is_named(raw: dict[str, Any], key: str) -> None:
    assert key in error_of({k: v for k, v in raw.items() if k != key})


@pytest.mark.parametrize("key", [*SIZES, "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [True, 0, -1, 1.0, 8.5, "8", [8], {"a": 8}, 1 << 31, 10**400, float("nan")])
def test_a_size_of_another_kind_is_named_with_its_value(key: str, value: Any) -> None:
    message = error_of({**LLAMA, key: value})
    assert f"{key} must be a whole number" in message
    assert repr(value)[:50] in message


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "partial_rotary_factor"])
@pytest.mark.parametrize(
    "value", [True, "1", [1.0], {"a": 1}, -1.0, float("nan"), float("inf"), 10**400, 1e300, 1e-300]
)
def test_a_number_of_another_kind_is_named(key: str, value: Any) -> None:
    assert f"{key} must be a number" in error_of({**LLAMA, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tie_word_embeddings", 1),
        ("attention_bias", "true"),
        ("mlp_bias", []),
        ("hidden_act", 3),
        ("model_type", ["llama"]),
        ("torch_dtype", 16),
        ("eos_token_id", -1),
        ("eos_token_id", [2, True]),
        ("eos_token_id", [[2]]),
        ("eos_token_id", "2"),
        ("eos_token_id", 1 << 40),
        ("bos_token_id", 1.0),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", 5),
        ("rope_scaling", "yarn"),
        ("rope_scaling", [1]),
        ("rope_parameters", 3),
        ("hidden_act", {"a": "\ud800" * 1000}),
    ],
)
def test_a_value_of_another_kind_is_named(key: str, value: Any) -> None:
    assert f"{key} must be" in error_of({**LLAMA, key: value})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"num_key_value_heads": 16}, "multiple of num_key_value_heads"),
        ({"hidden_size": 250}, "no head_dim"),
        ({"head_dim": 33}, "head_dim (33) must be even"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "at least 1"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e9}}, "too long"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2}, "head_dim of at least 4"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {**YARN, "factor": None, "original_max_position_embeddings": 4096}}, "at least 1"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {**YARN, "beta_fast": 1e-300}}, "beta_fast"),
        ({"rope_scaling": {**YARN, "attention_factor": -1.0}}, "attention_factor"),
        ({"rope_scaling": {**YARN, "truncate": "no"}}, "truncate"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0.0}}, "low_freq_factor"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "differ"),
        ({"rope_scaling": YARN, "rope_parameters": {**YARN, "rope_theta": 1e6}}, "differ"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_theta is 10000.0, but 1000000.0 in"),
        ({"rope_scaling": {**LLAMA3, "rope_theta": 5e5}}, "rope_theta is 10000.0, but 500000.0 in rope_scaling"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 1024}, "is 1024, but 2048 in rope_scaling"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 512}, "is 512, but 1024 in rope_scaling"),
        ({"rope_scaling": {**YARN, "type": "linear"}}, "rope_type 'yarn' and type 'linear' differ"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "has no original_max_position_embeddings"),
        ({"dual_chunk_attention_config": [8]}, "must be an object"),
    ],
)
def test_a_contradiction_is_explained(keys: dict[str, Any], words: str) -> None:
    assert words in error_of({**LLAMA, **keys})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"model_type": "x" * 10_000}, "xxx..."),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ({"architectures": []}, "LlamaForCausalLM"),
        ({"architectures": [None, 3]}, "LlamaForCausalLM"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"torch_dtype": "float64"}, "float64"),
        ({"torch_dtype": "auto"}, "auto"),
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "proportional"),
        ({"rope_scaling": {"type": "su"}}, "su"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "mrope"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kinds of layers"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(keys: dict[str, Any], words: str) -> None:
    assert words in error_of({**LLAMA, **keys}, UnsupportedError)


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("attention_multiplier", 0.0078125, 0.17677669),  # 1/√32
        ("embedding_multiplier", 12.0, 1.0),
        ("residual_multiplier", 0.22, 1),
        ("logits_scaling", 8.0, 1.0),
        ("logit_scale", 0.0625, None),
        ("query_pre_attn_scalar", 256, 32),
        ("scale_emb", 12, 1),
        ("scale_depth", 1.4, 2.0),  # √4 layers
        ("dim_model_base", 128, 256),
        ("attn_logit_softcapping", 50.0, None),
        ("final_logit_softcapping", 30.0, None),
        ("clip_qkv", 8.0, None),
        ("attn_temperature_tuning", True, False),
        ("use_qk_norm", True, False),
        ("qk_layernorm", True, False),
        ("no_rope_layers", [1, 1, 1, 0], [1, 1, 1, 1]),
        ("no_rope_layers", 4, None),
    ],
)
def test_keys_of_other_arithmetic_are_refused_unless_they_change_nothing(key: str, value: Any, neutral: Any) -> None:
    message = error_of({**LLAMA, key: value}, UnsupportedError)
    assert f"{key} {value!r} is not supported" in message
    assert parse_config({**LLAMA, key: neutral}) == parse_config(LLAMA)


def test_pretraining_with_tensor_parallelism_changes_nothing() -> None:
    assert parse_config({**LLAMA, "pretraining_tp": 2}) == parse_config(LLAMA)


@pytest.mark.parametrize("table", [{"quant_method": "gptq", "bits": 4}, {"fa_quant_type": "FAQuant"}, None])
def test_another_tool_s_quantization_is_left_to_the_formats(table: Any) -> None:
    raw = {**LLAMA, "quantize": "w8a8", "quantization_config": table}
    assert parse_config(raw) == parse_config(LLAMA)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_directory_saved_from_the_base_model_is_the_same_model(model_type: str) -> None:
    raw = {**QWEN3, "model_type": model_type, "architectures": [FAMILIES[model_type].causal_lm]}
    base = [FAMILIES[model_type].causal_lm.replace("ForCausalLM", "Model")]
    assert parse_config({**raw, "architectures": base}) == parse_config(raw)
    with pytest.raises(UnsupportedError, match="does not include"):
        parse_config({**raw, "architectures": [base[0] + "ForSequenceClassification"]})


def test_absent_architectures_are_taken_from_the_type() -> None:
    raw = {key: value for key, value in LLAMA.items() if key != "architectures"}
    assert parse_config(raw) == parse_config(LLAMA)
