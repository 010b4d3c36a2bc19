"""What config.json says of each family of models."""

from typing import Any

import pytest

from faquant.checkpoint.model_config import parse_config
from faquant.errors import UnsupportedError
from oracles.configs import (
    GEMMA3,
    GRANITE,
    OLMO3,
    PHI3,
    QWEN3,
    SMOLLM3,
    error_of,
)

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def test_multipliers_of_granite_are_folded_into_what_every_model_has() -> None:
    """The residual stream is divided by its factor; norms do not see that with another eps."""
    config = parse_config({**GRANITE, "num_attention_heads": 4, "num_key_value_heads": 2})
    assert config.head_dim == 64
    assert config.score_factor == pytest.approx(0.0625 * 8)
    assert config.embedding_multiplier == pytest.approx(12 / 0.25)
    assert config.rms_norm_eps == pytest.approx(1e-5 * 16)
    assert config.logits_scaling == 8.0
    neutral = parse_config({key: value for key, value in GRANITE.items() if key not in MULTIPLIERS})
    assert (neutral.embedding_multiplier, neutral.logits_scaling, neutral.rms_norm_eps) == (1.0, 1.0, 1e-5)
    assert neutral.score_factor == pytest.approx(32**0.5)


@pytest.mark.parametrize("key", MULTIPLIERS)
@pytest.mark.parametrize("value", [0, -1, "1", True])
def test_multipliers_must_be_greater_than_zero(key: str, value: Any) -> None:
    assert f"{key} must be" in error_of({**GRANITE, key: value})


def test_defaults_are_those_of_the_family() -> None:
    bare = {key: value for key, value in SMOLLM3.items() if key not in ("tie_word_embeddings", "rope_theta")}
    assert parse_config(bare).tie_word_embeddings
    assert parse_config(bare).rope.theta == 2e6


def test_phi3_s_published_code_is_that_of_transformers() -> None:
    """Its config.json names copies of the classes that transformers has by now."""
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    assert parse_config({**PHI3, "auto_map": code}) == parse_config(PHI3)
    for code in (
        {"AutoModelForCausalLM": "modeling_x.XForCausalLM"},
        {"AutoModelForCausalLM": "other/repository--modeling_phi3.Phi3ForCausalLM"},
        {"AutoModelForCausalLM": 3},
        ["modeling_phi3.Phi3ForCausalLM"],
    ):
        assert "auto_map" in error_of({**PHI3, "auto_map": code}, UnsupportedError)


def test_gemma_has_what_its_class_computes() -> None:
    config = parse_config(GEMMA3)
    assert config.embedding_multiplier == 16.0  # √256
    assert config.score_factor == 0.5  # √(64 / 256)
    assert config.logits_scaling == 1.0
    assert (config.family.norm_offset, config.family.activation) == (1.0, "gelu_pytorch_tanh")
    assert config.family.norms == (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
    untold = {key: value for key, value in GEMMA3.items() if key != "tie_word_embeddings"}
    assert parse_config(untold).tie_word_embeddings


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not supported"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3"}, "gemma3"),
    ],
)
def test_what_gemma_may_have_besides_is_refused(keys: dict[str, Any], words: str) -> None:
    assert words in error_of({**GEMMA3, **keys}, UnsupportedError)
    assert "query_pre_attn_scalar must be" in error_of({**GEMMA3, "query_pre_attn_scalar": 0})


def test_norms_of_olmo_are_over_outputs_and_over_all_heads() -> None:
    config = parse_config(OLMO3)
    norms = config.family.norms
    assert (norms.attention, norms.mlp) == (None, None)
    assert (norms.attention_output, norms.mlp_output) == ("post_attention_layernorm", "post_feedforward_layernorm")
    assert (config.qk_norm_size("q_norm"), config.qk_norm_size("k_norm")) == (256, 64)
    assert parse_config(QWEN3).qk_norm_size("k_norm") == 64


def test_qwen3_has_a_qk_norm() -> None:
    assert parse_config({**QWEN3, "use_qk_norm": True}) == parse_config(QWEN3)
