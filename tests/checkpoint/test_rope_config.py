"""RoPE in config.json: its spellings, the scaled context, published tables, and keys that are refused."""

from typing import Any

import pytest

from faquant.checkpoint.model_config import parse_config
from faquant.checkpoint.rope_config import RopeConfig
from faquant.errors import UnsupportedError
from oracles.configs import GEMMA3, LLAMA, LLAMA3, OLMO3, PHI3, QWEN2, YARN, error_of


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, RopeConfig("default", 5e5, original_max_position=2048)),
        ({}, RopeConfig("default", 5e5, original_max_position=2048)),
        (
            {"rope_type": "linear", "factor": 2},
            RopeConfig("linear", 5e5, factor=2.0, original_max_position=2048),
        ),
        (
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 100},
            RopeConfig("dynamic", 5e5, factor=2.0, original_max_position=2048),
        ),
        (
            {**YARN, "beta_fast": 16, "mscale": 1.0, "truncate": False},
            RopeConfig("yarn", 5e5, factor=4.0, original_max_position=2048, beta_fast=16.0, mscale=1.0, truncate=False),
        ),
        (
            LLAMA3,
            RopeConfig("llama3", 5e5, 8.0, 1024, low_freq_factor=1.0, high_freq_factor=4.0),
        ),
    ],
)
def test_all_spellings_of_rope_mean_the_same(table: dict[str, Any] | None, expected: RopeConfig) -> None:
    base = {**LLAMA, "rope_theta": 5e5}
    assert parse_config({**base, "rope_scaling": table}).rope == expected
    assert parse_config({**base, "rope_parameters": table, "rope_scaling": None}).rope == expected
    if table:
        older = {("type" if key == "rope_type" else key): value for key, value in table.items()}
        assert parse_config({**base, "rope_scaling": older}).rope == expected
        v5 = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
        assert parse_config({**v5, "rope_parameters": {**table, "rope_theta": 5e5}}).rope == expected
        assert parse_config({**base, "rope_parameters": table, "rope_scaling": older}).rope == expected


def test_theta_is_10000_where_nothing_names_it() -> None:
    assert parse_config({key: value for key, value in LLAMA.items() if key != "rope_theta"}).rope.theta == 10000.0


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"rope_type": "default"}, 2048),
        ({"rope_type": "linear", "factor": 2.5}, 5120),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({**YARN, "original_max_position_embeddings": 1024}, 4096),
        ({**YARN, "original_max_position_embeddings": 512}, 2048),
        ({**YARN, "original_max_position_embeddings": 128}, 2048),
        (LLAMA3, 2048),
    ],
)
def test_max_position_is_the_scaled_context(table: dict[str, Any], expected: int) -> None:
    assert parse_config({**LLAMA, "rope_scaling": table}).max_position == expected


PUBLISHED: dict[str, tuple[dict[str, Any], RopeConfig, int]] = {
    "Llama 3.1": (
        {**LLAMA3, "original_max_position_embeddings": 8192},
        RopeConfig("llama3", 5e5, 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        2048,
    ),
    "Qwen2.5 and Qwen3 with YaRN": (
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        RopeConfig("yarn", 5e5, 4.0, 32768),
        131072,
    ),
    "Yarn-Llama-2-128k": (
        {"factor": 32.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True},
        RopeConfig("yarn", 5e5, 32.0, 4096),
        131072,
    ),
    "InternLM as Llama": ({"type": "dynamic", "factor": 2.0}, RopeConfig("dynamic", 5e5, 2.0, 2048), 4096),
    "LongChat": ({"type": "linear", "factor": 8.0}, RopeConfig("linear", 5e5, 8.0, 2048), 16384),
    "the language model of Qwen2-VL": (
        {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
        RopeConfig("default", 5e5, original_max_position=2048),
        2048,
    ),
    "neutral and absent values": (
        {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.0, "alpha": None, "partial_rotary_factor": 1.0},
        RopeConfig("linear", 5e5, 2.0, 2048),
        4096,
    ),
    "the original YaRN's neutral factors": (
        {**YARN, "extrapolation_factor": 1, "attn_factor": 1},
        RopeConfig("yarn", 5e5, 4.0, 2048),
        8192,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rope_tables_are_read(name: str) -> None:
    """With keys that transformers ignores, where ignoring them is right."""
    table, rope, context = PUBLISHED[name]
    config = parse_config({**LLAMA, "rope_theta": 5e5, "rope_scaling": table})
    assert (config.rope, config.max_position, config.context_note) == (rope, context, None)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"type": "dynamic", "factor": 1.0, "alpha": 1000.0}, "alpha"),
        ({"type": "dynamic", "factor": 1.0, "mscale": 1.0}, "mscale"),
        ({"type": "dynamic", "factor": 2.0, "attention_factor": 0.8}, "attention_factor"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast"),
        ({"factor": 8.0}, "factor"),
        ({"rope_type": "default", "long_factor": [1.0]}, "long_factor"),
        ({**LLAMA3, "truncate": False}, "truncate"),
        ({**YARN, "low_freq_factor": 1.0}, "low_freq_factor"),
        ({**YARN, "attn_factor": 0.8}, "attn_factor"),
        ({**YARN, "extrapolation_factor": 0.5}, "extrapolation_factor"),
        ({**YARN, "llama_4_scaling_beta": 0.1}, "llama_4_scaling_beta"),
        ({**YARN, "x" * 1000: 1}, "xxx"),
    ],
)
def test_a_rope_key_that_the_type_does_not_use_is_refused(table: dict[str, Any], key: str) -> None:
    for place in ("rope_scaling", "rope_parameters"):
        message = error_of({**LLAMA, place: table}, UnsupportedError)
        assert f"{place}: '{key}" in message


ORIGINAL = "original_max_position_embeddings"
LONGROPE = {"short_factor": [1.0] * 16, "long_factor": [2] * 16}


def test_longrope_of_phi3_has_older_names_and_the_original_context_outside() -> None:
    expected = RopeConfig("longrope", 1e4, 4.0, 512, short_factor=(1.0,) * 16, long_factor=(2.0,) * 16)
    raw = {**PHI3, "original_max_position_embeddings": 512}
    for name in ("longrope", "su", "yarn"):
        config = parse_config({**raw, "rope_scaling": {"type": name, **LONGROPE}})
        assert (config.rope, config.max_position) == (expected, 2048)
    assert "'su' is not supported" in error_of({**LLAMA, "rope_scaling": {"type": "su", **LONGROPE}}, UnsupportedError)


def test_a_part_of_the_channels_is_rotated() -> None:
    for keys in (
        {"partial_rotary_factor": 0.75},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}},
    ):
        config = parse_config({**PHI3, **keys})
        assert config.rope.rotary_dim(config.head_dim) == 24


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"partial_rotary_factor": 0.01}, "gives 0 of 32 channels"),
        ({"partial_rotary_factor": 0.47}, "gives 15 of 32 channels"),
        ({"partial_rotary_factor": 0.0}, "must be between 0 and 1"),
        ({"partial_rotary_factor": 1.5}, "must be between 0 and 1"),
        ({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.75}}, "differ"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16}}, "long_factor must be a list"),
        ({"rope_scaling": {"type": "longrope", **LONGROPE, "short_factor": [0.0] * 16}}, "short_factor must be a list"),
        (
            {"rope_scaling": {"type": "longrope", **LONGROPE, "short_factor": [True] * 16}},
            "short_factor must be a list",
        ),
        ({"rope_scaling": {"type": "longrope", **LONGROPE, "long_factor": [1.0] * 8}}, "long_factor has 8 numbers"),
        ({"rope_scaling": {"type": "longrope", **LONGROPE}, "original_max_position_embeddings": 1}, "at least 2"),
        ({"rope_scaling": {"type": "longrope", **LONGROPE}, "original_max_position_embeddings": 4096}, "at least 1"),
    ],
)
def test_wrong_factors_are_named(keys: dict[str, Any], words: str) -> None:
    assert words in error_of({**PHI3, "original_max_position_embeddings": 512, **keys})


def test_the_original_context_of_phi3_is_read_beside_the_table() -> None:
    """As in transformers, which takes 4,096 if it is not there."""
    raw = {**PHI3, "max_position_embeddings": 16384}
    table = {"rope_type": "longrope", **LONGROPE}
    for beside, inside, found in (({}, {}, 4096), ({ORIGINAL: 512}, {}, 512), ({ORIGINAL: 512}, {ORIGINAL: 512}, 512)):
        assert parse_config({**raw, **beside, "rope_parameters": table | inside}).rope.original_max_position == found
    message = error_of({**raw, "rope_parameters": {**table, ORIGINAL: 512}}, UnsupportedError)
    assert f"{ORIGINAL} must stand beside the table" in message


def test_a_theta_beside_kinds_of_layers_is_refused() -> None:
    """transformers 5.24 reads it for one kind only."""
    assert "is read for layers with full attention only" in error_of({**OLMO3, "rope_theta": 1e6}, UnsupportedError)
    kinds = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "default"}}
    assert "needs rope_theta for each kind" in error_of({**OLMO3, "rope_theta": 1e6, "rope_parameters": kinds})
    kinds["sliding_attention"]["rope_theta"] = 1e4
    config = parse_config({**OLMO3, "rope_theta": 1e6, "rope_parameters": kinds})
    assert {rope.theta for rope in config.ropes} == {1e6, 1e4}


def test_layers_with_a_window_may_have_a_rope_of_their_own() -> None:
    theta = {key: value for key, value in OLMO3.items() if key != "rope_theta"}
    for raw in (
        {**OLMO3, "rope_theta": 5e5, "rope_scaling": YARN},
        {**theta, "rope_parameters": {"full_attention": YARN}},
        {**theta, "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}},
    ):
        config = parse_config(raw)
        plain = RopeConfig("default", 5e5, original_max_position=2048)
        assert config.ropes == (RopeConfig("yarn", 5e5, 4.0, 2048), plain)
        assert [config.rope_kind(layer) for layer in range(4)] == [1, 1, 1, 0]
        assert config.max_position == 8192
    assert parse_config(OLMO3).ropes == (RopeConfig("default", 5e5, original_max_position=2048),)
    apart = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert [rope.theta for rope in parse_config({**theta, "rope_parameters": apart}).ropes] == [1e6, 1e4]


def test_gemma_s_bases_and_context_are_its_own() -> None:
    """Its max_position_embeddings is the context after scaling."""
    config = parse_config({**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert config.ropes == (
        RopeConfig("linear", 1e6, 8.0, 2048),
        RopeConfig("default", 1e4, original_max_position=2048),
    )
    assert config.max_position == 2048
    assert parse_config({**GEMMA3, "rope_local_base_freq": 5e3}).ropes[1].theta == 5e3
    assert "must be greater than 1" in error_of({**GEMMA3, "rope_local_base_freq": 0.5})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope_parameters": {"full_attention": {}, "chunked_attention": {}}}, "'chunked_attention' is not a kind"),
        ({"rope_parameters": {"full_attention": {}, "rope_theta": 1e4}}, "'rope_theta' is not a kind"),
        ({"rope_parameters": {"full_attention": {"type": "dynamic", "factor": 2.0}}}, "not supported by kinds"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not supported by kinds"),
        ({"rope_parameters": {"full_attention": {**YARN, "alpha": 2}}}, "full_attention: 'alpha' (2)"),
        ({"rope_parameters": YARN}, "rope_parameters needs full_attention and sliding_attention"),
    ],
)
def test_unknown_kinds_and_types_are_refused(keys: dict[str, Any], words: str) -> None:
    theta = {key: value for key, value in OLMO3.items() if key != "rope_theta"}
    assert words in error_of({**theta, **keys}, UnsupportedError)
    both = {"rope_parameters": {"full_attention": {}}, "rope_scaling": YARN}
    assert "both rope_parameters and rope_scaling" in error_of({**OLMO3, **both})


DUAL_CHUNKS = {"chunk_size": 512, "local_size": 64, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("keys", "context", "longer"),
    [
        ({"dual_chunk_attention_config": DUAL_CHUNKS}, 1024, "2,048"),
        ({"dual_chunk_attention_config": DUAL_CHUNKS, "rope_scaling": YARN}, 1024, "8,192"),
        ({"dual_chunk_attention_config": {**DUAL_CHUNKS, "original_max_position_embeddings": 2048}}, 2048, None),
        ({"dual_chunk_attention_config": None}, 2048, None),
        ({"dual_chunk_attention_config": {}}, 2048, None),
    ],
)
def test_the_context_ends_where_dual_chunk_attention_begins(
    keys: dict[str, Any], context: int, longer: str | None
) -> None:
    config = parse_config({**QWEN2, **keys})
    assert config.max_position == context
    if longer is None:
        assert config.context_note is None
    else:
        assert config.context_note is not None
        assert config.context_note.startswith(f"{longer} need dual chunk attention")
