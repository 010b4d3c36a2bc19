"""RoPE's frequencies, tables and application against transformers, bit for bit."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.model.rope import Rope, apply_rope

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "default with a great theta": {"rope_type": "default", "rope_theta": 2804339835.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": YARN,
    "yarn of Qwen": {**YARN, "original_max_position_embeddings": 32768},
    "yarn with attention_factor": {**YARN, "attention_factor": 0.8},
    "yarn with mscale alone": {**YARN, "mscale": 0.7},
    "yarn with mscale and mscale_all_dim": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn with mscale 0": {**YARN, "mscale": 0.0, "mscale_all_dim": 1.0},
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn with truncate null": {**YARN, "truncate": None},
    "yarn with betas": {**YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn with betas null": {**YARN, "beta_fast": None, "beta_slow": None},
    "yarn with equal betas": {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False},
    "yarn without the original's length": {"rope_type": "yarn", "factor": 4.0},
    "yarn with factor null": {**YARN, "factor": None},
    "yarn of factor 1": {**YARN, "factor": 1.0},
    "llama3": LLAMA3,
    "llama3 of Llama 3.1": {**LLAMA3, "original_max_position_embeddings": 8192},
    "llama3 of Llama 3.2": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    "llama3 without the original's length": {
        key: value for key, value in LLAMA3.items() if not key.startswith("original")
    },
}


def both(rope: dict[str, Any], head_dim: int = 64, context: int = 256, **keys: Any) -> tuple[LlamaConfig, ModelConfig]:
    theirs = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters=dict(rope),
        **keys,
    )
    raw = {**json.loads(theirs.to_json_string()), "rope_parameters": rope}
    return theirs, parse_config(raw)


def their_frequencies(config: LlamaConfig, length: int | None = None) -> tuple[torch.Tensor, float]:
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)


@pytest.mark.parametrize("head_dim", [4, 24, 64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_attention_factor_equal_transformers(name: str, head_dim: int) -> None:
    theirs, ours = both(ROPES[name], head_dim)
    frequencies, scaling = their_frequencies(theirs)
    rope = Rope(ours)
    assert torch.equal(rope.frequencies, frequencies)
    assert rope.scaling == scaling


@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_the_original_s_length_outside_of_the_table_wins_as_in_transformers(rope: dict[str, Any]) -> None:
    theirs, ours = both(rope, context=4096, original_max_position_embeddings=128)
    assert ours.rope.original_max_position == 128
    assert torch.equal(Rope(ours).frequencies, their_frequencies(theirs)[0])


positive = st.floats(0.01, 100.0)


@given(
    theta=st.floats(2.0, 1e9),
    factor=st.floats(1.0, 200.0),
    original=st.integers(1, 200_000),
    head_dim=st.sampled_from([2, 6, 64, 80, 128]),
    attention_factor=st.none() | positive,
    betas=st.none() | st.tuples(positive, positive),
    mscales=st.none() | st.tuples(st.floats(0.01, 2.0), st.floats(0.01, 2.0)),
    truncate=st.booleans(),
)
def test_yarn_equals_transformers_for_any_parameters(
    theta: float,
    factor: float,
    original: int,
    head_dim: int,
    attention_factor: float | None,
    betas: tuple[float, float] | None,
    mscales: tuple[float, float] | None,
    truncate: bool,
) -> None:
    rope: dict[str, Any] = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "truncate": truncate}
    rope["original_max_position_embeddings"] = original
    rope["attention_factor"] = attention_factor
    if betas:
        rope["beta_fast"], rope["beta_slow"] = betas
    if mscales:
        rope["mscale"], rope["mscale_all_dim"] = mscales
    theirs, ours = both(rope, head_dim)
    frequencies, scaling = their_frequencies(theirs)
    assert torch.equal(Rope(ours).frequencies, frequencies)
    assert Rope(ours).scaling == scaling


@given(
    theta=st.floats(2.0, 1e9),
    factor=st.floats(1.0, 200.0),
    original=st.integers(1, 200_000),
    low=st.floats(0.1, 5.0),
    span=st.floats(0.1, 20.0),
)
def test_llama3_equals_transformers_for_any_parameters(
    theta: float, factor: float, original: int, low: float, span: float
) -> None:
    rope = {**LLAMA3, "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original}
    theirs, ours = both({**rope, "low_freq_factor": low, "high_freq_factor": low + span})
    assert torch.equal(Rope(ours).frequencies, their_frequencies(theirs)[0])


@given(factor=st.floats(1.0, 50.0), length=st.integers(1, 100_000), head_dim=st.sampled_from([4, 64, 128]))
def test_dynamic_equals_transformers_for_any_length(factor: float, length: int, head_dim: int) -> None:
    theirs, ours = both({"rope_type": "dynamic", "factor": factor}, head_dim, context=2048)
    assert torch.equal(Rope(ours, length).frequencies, their_frequencies(theirs, length)[0])


def test_dynamic_rope_up_to_the_original_context_is_plain_rope() -> None:
    _, plain = both(ROPES["default"])
    _, ours = both(ROPES["dynamic"], context=256)
    for length in (None, 1, 255, 256):
        assert torch.equal(Rope(ours, length).frequencies, Rope(plain).frequencies)
    assert not torch.equal(Rope(ours, 257).frequencies, Rope(plain).frequencies)


@pytest.mark.parametrize("name", sorted(ROPES.keys() - {"dynamic"}))
def test_only_dynamic_rope_depends_on_the_request_s_length(name: str) -> None:
    _, ours = both(ROPES[name])
    assert torch.equal(Rope(ours, 100_000).frequencies, Rope(ours).frequencies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ROPES)
def test_tables_equal_transformers_up_to_the_end_of_the_scaled_context(name: str, dtype: torch.dtype) -> None:
    theirs, ours = both(ROPES[name], context=32768)
    rope = Rope(ours, 100 if ours.rope.rope_type == "dynamic" else None)
    # At those positions transformers would change the frequencies of dynamic RoPE, which the test above covers.
    end = 32768 if ours.rope.rope_type == "dynamic" else ours.max_position
    positions = torch.cat((torch.arange(100), torch.arange(end - 100, end)))
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.empty(1, dtype=dtype), positions[None])
    our_cos, our_sin = rope.tables(positions, dtype)
    assert our_cos.dtype == dtype
    assert torch.equal(our_cos[:, 0], cos[0])
    assert torch.equal(our_sin[:, 0], sin[0])


def test_rotation_is_the_tables_without_the_attention_factor() -> None:
    _, ours = both(ROPES["yarn"])
    rope, positions = Rope(ours), torch.arange(200)
    cos, sin = rope.rotation(positions)
    assert rope.scaling > 1.1
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    assert all(torch.equal(a * rope.scaling, b) for a, b in zip((cos, sin), rope.tables(positions), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_application_equals_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(50, heads, 64, generator=generator).to(dtype) for heads in (9, 3))
    theirs, ours = both(ROPES["yarn"])
    positions = torch.arange(100, 150)
    cos, sin = LlamaRotaryEmbedding(theirs)(q, positions[None])
    wanted = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    tables = Rope(ours).tables(positions, dtype)
    for x, theirs_x in zip((q, k), wanted, strict=True):
        assert torch.equal(apply_rope(x, *tables), theirs_x[0].transpose(0, 1))


@settings(max_examples=20)
@given(start=st.integers(0, 1 << 20), count=st.integers(1, 70))
def test_a_position_s_table_does_not_depend_on_the_others(start: int, count: int) -> None:
    _, ours = both(ROPES["default"], head_dim=20)
    rope, positions = Rope(ours), torch.arange(start, start + count)
    together = torch.stack(rope.tables(positions))
    alone = torch.cat([torch.stack(rope.tables(position[None])) for position in positions], dim=1)
    assert torch.equal(together, alone)
