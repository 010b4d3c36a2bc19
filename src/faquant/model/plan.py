"""Estimates the memory that a model will need from its config alone; no weights are required."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..errors import UsageError
from ..formats import format_of
from ..formats.base import Source
from ..formats.float import FloatFormat
from ..kernels.scheme import AttentionScheme
from ..recipe import AttentionRecipe, LinearRecipe, Recipe
from .inspection import FLOAT_CACHE_BYTES, inspect

PROGRAM_BYTES = 160 << 20
"""Python, NumPy, the server and a tokenizer: 124 MiB were measured with a vocabulary of 49,152 tokens."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of the weights, and per token in the cache of all layers."""

    name: str
    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Plan:
    """The memory of a model in faquant, and in any runtime in bfloat16.

    `step_bytes` is the most memory that one step needs besides weights and cache.
    """

    config: ModelConfig
    ours: Footprint
    bfloat16: Footprint
    step_bytes: int

    @property
    def footprints(self) -> Sequence[Footprint]:
        return self.ours, self.bfloat16

    def cache_memory(self, footprint: Footprint, memory: int) -> int:
        """Bytes of `memory` left for the cache; 0 if the weights alone do not fit."""
        return max(0, memory - footprint.weight_bytes - self.step_bytes - PROGRAM_BYTES)

    def tokens_in(self, footprint: Footprint, memory: int) -> int:
        """Tokens whose keys and values fit into `memory` besides everything else."""
        return self.cache_memory(footprint, memory) // footprint.kv_bytes_per_token

    def memory_for(self, footprint: Footprint, tokens: int) -> int:
        """Total bytes with this many tokens in the cache."""
        all_else = footprint.weight_bytes + self.step_bytes + PROGRAM_BYTES
        return all_else + tokens * footprint.kv_bytes_per_token

    def to_json(self, memory: int) -> dict[str, Any]:
        """As JSON values."""
        return {
            "memory": memory,
            "program_bytes": PROGRAM_BYTES,
            "step_bytes": self.step_bytes,
            "max_position": self.config.max_position,
            "context_note": self.config.context_note,
            "footprints": {
                some.name: {
                    "weight_bytes": some.weight_bytes,
                    "kv_bytes_per_token": some.kv_bytes_per_token,
                    "kv_cache_memory": self.cache_memory(some, memory),
                    "tokens": self.tokens_in(some, memory),
                }
                for some in self.footprints
            },
        }


def plan(directory: Path, recipe: Recipe | None = None, tokens: int = 512, sequences: int = 64) -> Plan:
    """Estimate the memory of a quantized model, or of a float model after quantization by the recipe (None: default).

    Args:
        directory: needs only config.json for a float model; a complete directory for a quantized one.
        tokens, sequences: as EngineConfig's max_num_batched_tokens and max_num_seqs.

    Raises:
        CheckpointError, UnsupportedError: the model is damaged or not supported.
        UsageError: a recipe is given for a quantized model.
    """
    source = Source.of(directory)
    config = source.config
    if format_of(source).name == FloatFormat.name:
        chosen = recipe or Recipe(name="default")
        ours = Footprint(chosen.name, _weights(config, chosen.linear), _cache(config, chosen.attention))
    elif recipe is not None:
        raise UsageError(f"{directory} is quantized already; a recipe can only be chosen for a float model.")
    else:
        found = inspect(directory)
        ours = Footprint(found.recipe_name, found.weight_bytes, found.kv_bytes_per_token)
    halves = 2 * config.num_kv_heads * config.head_dim * config.num_layers * 2
    # Per token, three times its hidden states, and the outputs of gate_proj and up_proj; per sequence, its logits.
    floats = tokens * (3 * config.hidden_size + 2 * config.intermediate_size) + sequences * config.vocab_size
    return Plan(config, ours, Footprint("bfloat16", _bfloat16_weights(config), halves), 4 * floats)


def _bfloat16_weights(config: ModelConfig) -> int:
    head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    linears = sum(_size(config, name) for name in config.layer_linears)
    return 2 * (linears + config.vocab_size * config.hidden_size + head)


def _weights(config: ModelConfig, linear: LinearRecipe | None) -> int:
    embedding = config.vocab_size * config.hidden_size
    embedding_bytes = embedding * (4 if config.dtype == "float32" else 2)
    return embedding_bytes + sum(_linear(config, name, linear) for name in (*config.layer_linears, "lm_head"))


def _linear(config: ModelConfig, name: str, linear: LinearRecipe | None) -> int:
    n, _ = config.linear_shape(name)
    bias = 4 * n if config.has_bias(name) else 0
    if linear is None or linear.is_float(name):
        return (2 if config.dtype == "bfloat16" else 4) * _size(config, name) + bias
    return _size(config, name) + 8 * n + bias  # with a scale and the correction for unsigned products per output


def _size(config: ModelConfig, name: str) -> int:
    n, k = config.linear_shape(name)
    return n * k


def _cache(config: ModelConfig, attention: AttentionRecipe | None) -> int:
    heads, dim = config.num_kv_heads, config.head_dim
    if attention is None:
        return 2 * heads * dim * FLOAT_CACHE_BYTES * config.num_layers
    scale = None if attention.kv_scale == "token" else np.ones((heads, dim), np.float32)
    scheme = AttentionScheme(config.num_heads, heads, dim, k_scale=scale, v_scale=scale)
    return scheme.bytes_per_token * config.num_layers
