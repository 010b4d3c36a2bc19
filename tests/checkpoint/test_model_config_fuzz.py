"""Any config.json is either parsed, or raises one of the documented errors."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.errors import FaquantError
from faquant.model.rope import Rope
from oracles.configs import LLAMA, LLAMA3, MISTRAL, QWEN2, QWEN3, WINDOWED, YARN

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 1 << 31, 10**400, -(10**30), 1e308, 5e-324])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "sliding_attention"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
BASES = [
    {**LLAMA, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 32, "attention_bias": False},
    {**LLAMA, "rope_scaling": LLAMA3},
    {**MISTRAL, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "sliding_window": 7},
    {
        **QWEN2,
        **WINDOWED,
        "max_window_layers": 2,
        "rope_scaling": YARN,
        "dual_chunk_attention_config": {"original_max_position_embeddings": 1024},
    },
    {**LLAMA, "logits_scaling": 1.0, "attn_logit_softcapping": None, "no_rope_layers": [1, 1, 1, 1]},
    {
        **QWEN3,
        **WINDOWED,
        "layer_types": ["full_attention"] * 4,
        "rope_parameters": {
            **YARN,
            "beta_fast": 16.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "attention_factor": None,
            "truncate": False,
        },
    },
]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid configuration with one to four values replaced or removed, at the top level or in the RoPE table."""
    raw: dict[str, Any] = deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 4))):
        tables = [value for value in raw.values() if isinstance(value, dict) and value]
        table = draw(st.sampled_from([raw, *tables]))
        key = draw(st.sampled_from(sorted(table)))
        if draw(st.booleans()):
            table[key] = draw(json_values)
        else:
            table.pop(key)
    return raw


@settings(max_examples=400)
@given(mutated())
@example({**LLAMA, "rope_scaling": {"type": "linear", "factor": 1e308}})
@example({**LLAMA, "rope_theta": 10**400})
@example({**LLAMA, "num_hidden_layers": (1 << 31) - 1})
def test_any_configuration_is_read_or_is_one_error(raw: dict[str, Any]) -> None:
    try:
        config = parse_config(raw)
    except FaquantError as error:
        message = str(error)
    else:
        assert_has_rope_tables(config)
        return
    assert "\n" not in message
    assert message.startswith("config.json")
    message.encode("utf-8")


def assert_has_rope_tables(config: ModelConfig) -> None:
    if config.head_dim <= 1024:
        for length in (None, 1, 2048, config.max_position):
            cos, sin = Rope(config, length).tables(np.arange(3))
            assert np.isfinite([cos, sin]).all()


@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(LLAMA)), json_values))
def test_any_object_is_read_or_is_one_error(raw: dict[str, Any]) -> None:
    with pytest.raises(FaquantError):
        parse_config(raw)
