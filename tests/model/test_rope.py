"""RoPE's frequencies and tables against transformers, whose powers, cosines and sines depend on the machine and may be
off by one float32 step. Results from the same powers or tables have the same bits."""

import json
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.kernels.arrays import Floats
from faquant.kernels.torch_backend import rope as apply_rope
from faquant.model import rope as ours_of
from faquant.model.rope import Rope
from oracles.configs import PHI3

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


def powers(exponents: torch.Tensor, base: float) -> torch.Tensor:
    """base ** exponents, as faquant computes it."""
    return torch.tensor([ours_of._power(float(np.float32(base)), float(exponent)) for exponent in exponents])


def their_formula(config: LlamaConfig, length: int | None = None) -> tuple[Floats, float]:
    """The result of transformers with faquant's powers of theta."""
    with patch.object(torch.Tensor, "__rpow__", powers):
        return their_frequencies(config, length)


def their_frequencies(config: LlamaConfig, length: int | None = None) -> tuple[Floats, float]:
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        frequencies, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)
    return frequencies.numpy(), scaling


def same_bits(ours: Floats, theirs: Floats) -> bool:
    return ours.dtype == theirs.dtype == np.float32 and np.array_equal(ours, theirs)


def steps_apart(ours: Floats, theirs: Floats) -> int:
    """How many float32 numbers, at most, lie between positive ones, the farther one counted."""
    assert ours.dtype == theirs.dtype == np.float32
    assert min(ours.min(), theirs.min()) > 0
    return int(np.abs(ours.view(np.int32) - theirs.view(np.int32)).max())


@pytest.mark.parametrize("head_dim", [4, 24, 64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_and_attention_factor_equal_transformers(name: str, head_dim: int) -> None:
    theirs, ours = both(ROPES[name], head_dim)
    frequencies, scaling = their_frequencies(theirs)
    rope = Rope(ours)
    assert steps_apart(rope.frequencies, frequencies) <= 1
    assert rope.scaling == pytest.approx(scaling, rel=1e-15)
    assert same_bits(rope.frequencies, their_formula(theirs)[0])


@given(theta=st.floats(2.0, 1e10), head_dim=st.sampled_from([2, 6, 64, 80, 128, 256]))
def test_a_power_is_the_nearest_float32(theta: float, head_dim: int) -> None:
    """And a frequency is the nearest float32 of the result."""
    _, ours = both({"rope_type": "default", "rope_theta": theta}, head_dim)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    assert same_bits(Rope(ours).frequencies, 1 / wavelengths)


@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_the_original_s_length_may_be_outside_of_the_table_as_in_transformers(rope: dict[str, Any]) -> None:
    rope = {key: value for key, value in rope.items() if not key.startswith("original")}
    theirs, ours = both(rope, context=4096, original_max_position_embeddings=128)
    assert ours.rope.original_max_position == 128
    assert same_bits(Rope(ours).frequencies, their_formula(theirs)[0])


@pytest.mark.parametrize("name", ROPES)
def test_keys_without_effect_have_none_in_transformers(name: str) -> None:
    """The keys that faquant accepts with every type and ignores."""
    ignored = {"finetuned": True, "mrope_section": [8, 12, 12], "mrope_interleaved": True, "extrapolation_factor": 1.0}
    if ROPES[name]["rope_type"] not in ("yarn", "llama3"):
        ignored |= {"original_max_position_embeddings": 16}
    theirs, ours = both({**ROPES[name], **ignored})
    plain, _ = both(ROPES[name])
    frequencies, scaling = their_frequencies(theirs, 300)
    expected, expected_scaling = their_frequencies(plain, 300)
    assert same_bits(frequencies, expected)
    assert scaling == expected_scaling
    assert same_bits(Rope(ours, 300).frequencies, Rope(both(ROPES[name])[1], 300).frequencies)


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
    frequencies, scaling = their_formula(theirs)
    assert same_bits(Rope(ours).frequencies, frequencies)
    assert Rope(ours).scaling == pytest.approx(scaling, rel=1e-15)


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
    assert same_bits(Rope(ours).frequencies, their_formula(theirs)[0])


@given(factor=st.floats(1.0, 50.0), length=st.integers(1, 100_000), head_dim=st.sampled_from([4, 64, 128]))
def test_dynamic_equals_transformers_for_any_length(factor: float, length: int, head_dim: int) -> None:
    theirs, ours = both({"rope_type": "dynamic", "factor": factor}, head_dim, context=2048)
    assert same_bits(Rope(ours, length).frequencies, their_formula(theirs, length)[0])


def test_dynamic_rope_up_to_the_original_context_is_plain_rope() -> None:
    _, plain = both(ROPES["default"])
    _, ours = both(ROPES["dynamic"], context=256)
    for length in (None, 1, 255, 256):
        assert np.array_equal(Rope(ours, length).frequencies, Rope(plain).frequencies)
    assert not np.array_equal(Rope(ours, 257).frequencies, Rope(plain).frequencies)


factors = st.lists(st.floats(0.5, 64.0), min_size=8, max_size=8)


@given(short=factors, long=factors, original=st.integers(2, 5000), length=st.none() | st.integers(1, 5000))
def test_longrope_equals_transformers_for_any_length(
    short: list[float], long: list[float], original: int, length: int | None
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long}
    theirs, ours = both({**rope, "original_max_position_embeddings": original}, head_dim=16, context=5000)
    frequencies, scaling = their_formula(theirs, length)
    assert same_bits(Rope(ours, length).frequencies, frequencies)
    assert Rope(ours, length).scaling == pytest.approx(scaling, rel=1e-15)


def test_channels_beyond_the_rotated_ones_are_left_alone() -> None:
    """Without the attention factor, too."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 2.0],
        "long_factor": [1.0, 2.0],
        "partial_rotary_factor": 0.5,
    }
    sizes = {"hidden_size": 64, "original_max_position_embeddings": 2048}
    raw = {**PHI3, "rope_scaling": {**rope, "attention_factor": 1.5}, **sizes}
    config = parse_config(raw)
    assert config.head_dim == 8
    cos, sin = Rope(config).tables(np.arange(5))
    others = [2, 3, 6, 7]
    assert np.all(cos[..., others] == 1)
    assert np.all(sin[..., others] == 0)
    np.testing.assert_allclose(np.hypot(cos, sin)[..., [0, 1, 4, 5]], 1.5, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(ROPES.keys() - {"dynamic"}))
def test_only_dynamic_rope_depends_on_the_request_s_length(name: str) -> None:
    _, ours = both(ROPES[name])
    assert np.array_equal(Rope(ours, 100_000).frequencies, Rope(ours).frequencies)


@pytest.mark.parametrize("name", ROPES)
def test_tables_equal_transformers_up_to_the_end_of_the_scaled_context(name: str) -> None:
    """Except for one step of a frequency times the position, and a rounding of each angle and value."""
    theirs, ours = both(ROPES[name], context=32768)
    rope = Rope(ours, 100 if ours.rope.rope_type == "dynamic" else None)
    # At those positions transformers would change the frequencies of dynamic RoPE, which the test above covers.
    end = 32768 if ours.rope.rope_type == "dynamic" else ours.max_position
    positions = np.concatenate((np.arange(100), np.arange(end - 100, end)))
    theirs_at = LlamaRotaryEmbedding(theirs)(torch.empty(1), torch.from_numpy(positions)[None])
    angles = positions[:, None] * np.tile(rope.frequencies, 2).astype(np.float64)
    allowed = rope.scaling * (2.0**-23 * angles + 1e-6)
    for table, of_theirs in zip(rope.tables(positions), theirs_at, strict=True):
        assert table.dtype == np.float32
        assert table.shape == (200, 1, 64)
        assert (np.abs(table[:, 0] - of_theirs[0].numpy()) <= allowed).all()


@pytest.mark.parametrize("name", ROPES)
def test_tables_are_cosine_and_sine_of_the_rounded_angle(name: str) -> None:
    """Correctly rounded to float32, except if the float64 is halfway between two."""
    _, ours = both(ROPES[name], context=32768)
    rope, positions = Rope(ours), np.array([0, 1, 2, 100, 4097, 32767])
    angles = positions.astype(np.float32)[:, None] * rope.frequencies
    for table, function in zip(rope.rotation(positions), (math.cos, math.sin), strict=True):
        exact = np.array([[function(float(angle)) for angle in row] for row in angles]).astype(np.float32)
        assert np.array_equal(table[:, 0, :32], table[:, 0, 32:])
        assert np.abs(table[:, 0, :32].view(np.int32) - exact.view(np.int32)).max() <= 1
        assert (table[:, 0, :32] != exact).mean() < 0.01


def test_rotation_is_the_tables_without_the_attention_factor() -> None:
    _, ours = both(ROPES["yarn"])
    rope, positions = Rope(ours), np.arange(200)
    cos, sin = rope.rotation(positions)
    assert rope.scaling > 1.1
    np.testing.assert_allclose(cos**2 + sin**2, np.ones_like(cos), rtol=1e-6)
    scaling = np.float32(rope.scaling)
    assert all(np.array_equal(a * scaling, b) for a, b in zip((cos, sin), rope.tables(positions), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_application_equals_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(50, heads, 64, generator=generator).to(dtype) for heads in (9, 3))
    theirs, _ = both(ROPES["yarn"])
    cos, sin = LlamaRotaryEmbedding(theirs)(q, torch.arange(100, 150)[None])
    wanted = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for x, theirs_x in zip((q, k), wanted, strict=True):
        assert torch.equal(apply_rope(x, cos[0, :, None], sin[0, :, None]), theirs_x[0].transpose(0, 1))


@settings(max_examples=20)
@given(start=st.integers(0, 1 << 20), count=st.integers(1, 70))
def test_a_position_s_table_does_not_depend_on_the_others(start: int, count: int) -> None:
    _, ours = both(ROPES["default"], head_dim=20)
    rope, positions = Rope(ours), np.arange(start, start + count)
    together = np.stack(rope.tables(positions))
    alone = np.concatenate([np.stack(rope.tables(position[None])) for position in positions], axis=1)
    assert np.array_equal(together, alone)
