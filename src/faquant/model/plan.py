"""Estimates the memory that a model will need from its config alone; no weights are required."""

from collections.abc import Mapping, Sequence
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
from .ranks import Heads, layers_of, outputs_of, part

PROGRAM_BYTES = 160 << 20
"""Python, NumPy, the server and a tokenizer: 124 MiB were measured with a vocabulary of 49,152 tokens."""
WORKER_BYTES = 720 << 20
"""A worker of vLLM 0.32 on a CPU: 715 MiB were measured, of which processes of a machine share 190."""

EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank: of the weights, and per token in the cache of its layers.

    Each is that of the stage of a pipeline that has the most of it, because vLLM gives the cache as many bytes on each
    rank, and as many tokens as fit on all of them.
    """

    name: str
    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Plan:
    """The memory of a model in faquant, and in any runtime in bfloat16, on one of its ranks.

    Attributes:
        tensor_parallel, pipeline_parallel: ranks of each stage, and stages.
        step_bytes: the most memory that one step needs besides weights and cache.
        program_bytes: what the process needs besides.
    """

    config: ModelConfig
    ours: Footprint
    bfloat16: Footprint
    tensor_parallel: int
    pipeline_parallel: int
    step_bytes: int
    program_bytes: int

    @property
    def footprints(self) -> Sequence[Footprint]:
        return self.ours, self.bfloat16

    @property
    def ranks(self) -> int:
        """All ranks of all stages."""
        return self.tensor_parallel * self.pipeline_parallel

    def cache_memory(self, footprint: Footprint, memory: int) -> int:
        """Bytes of a rank's `memory` left for the cache; 0 if the weights alone do not fit."""
        return max(0, memory - self.memory_for(footprint, 0))

    def tokens_in(self, footprint: Footprint, memory: int) -> int:
        """Tokens whose keys and values fit into every rank's `memory` besides everything else."""
        return self.cache_memory(footprint, memory) // footprint.kv_bytes_per_token

    def memory_for(self, footprint: Footprint, tokens: int) -> int:
        """Total bytes of a rank with this many tokens in the cache."""
        all_else = footprint.weight_bytes + self.step_bytes + self.program_bytes
        return all_else + tokens * footprint.kv_bytes_per_token

    def to_json(self, memory: int) -> dict[str, Any]:
        """As JSON values. All sizes are those of one rank."""
        return {
            "memory": memory,
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "program_bytes": self.program_bytes,
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


def plan(
    directory: Path,
    recipe: Recipe | None = None,
    tokens: int = 512,
    sequences: int = 64,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> Plan:
    """Estimate the memory of a quantized model, or of a float model after quantization by the recipe (None: default).

    One rank is `faquant serve`; several are vLLM's, and the sizes are those of one of them.

    Args:
        directory: needs only config.json for a float model; a complete directory for a quantized one.
        tokens, sequences: as EngineConfig's max_num_batched_tokens and max_num_seqs.
        tensor_parallel, pipeline_parallel: ranks of each stage, and stages.

    Raises:
        CheckpointError, UnsupportedError: the model is damaged, not supported, or cannot be divided among the ranks.
        UsageError: a recipe is given for a quantized model.
    """
    source = Source.of(directory)
    config = source.config
    if format_of(source).name == FloatFormat.name:
        chosen = recipe or Recipe(name="default")
        name, weights = chosen.name, _weights(config, chosen.linear)
        cache = [_cache(config, chosen.attention)] * config.num_layers
    elif recipe is not None:
        raise UsageError(f"{directory} is quantized already; a recipe can only be chosen for a float model.")
    else:
        found = inspect(directory)
        # A tied head is in memory twice: as rows of the embedding, and packed.
        weights = {"lm_head": found.bytes_by_module[EMBEDDING], **found.bytes_by_module}
        name, cache = found.recipe_name, found.kv_bytes_by_layer
    ranks = tensor_parallel, pipeline_parallel
    halves = [2 * 2 * config.num_kv_heads * config.head_dim] * config.num_layers
    return Plan(
        config,
        _footprint(name, config, weights, cache, *ranks),
        _footprint("bfloat16", config, _bfloat16_weights(config, *ranks), halves, *ranks),
        *ranks,
        _step(config, tokens, sequences, tensor_parallel),
        PROGRAM_BYTES if ranks == (1, 1) else WORKER_BYTES,
    )


def _footprint(
    name: str,
    config: ModelConfig,
    weights: Mapping[str, int],
    cache: Sequence[int],
    tensor_parallel: int,
    pipeline_parallel: int,
) -> Footprint:
    """What a rank holds, given what there is.

    weights: bytes by module; of a linear, a rank holds its outputs, of any other module of its stage all.
    cache: bytes per token by layer, of all heads.
    """
    heads = len(Heads.of(config, 0, tensor_parallel).kv)
    layers = [layers_of(config.num_layers, stage, pipeline_parallel) for stage in range(pipeline_parallel)]
    stages = {f"model.layers.{layer}": stage for stage, own in enumerate(layers) for layer in own} | {EMBEDDING: 0}
    held = [0] * pipeline_parallel
    for module, size in weights.items():
        own = size
        if module in config.linears:
            own = -(-size * len(outputs_of(config, module, 0, tensor_parallel)) // config.linears[module].n)
        # The last norm and the head, which are in no layer, are on the last stage.
        held[stages.get(".".join(module.split(".")[:3]), pipeline_parallel - 1)] += own
    most = max(sum(cache[layer] for layer in own) for own in layers)
    return Footprint(name, max(held), most // config.num_kv_heads * heads)


def _step(config: ModelConfig, tokens: int, sequences: int, tensor_parallel: int) -> int:
    """Bytes of floats that a step holds at most: per token, three times its hidden states, and the outputs of gate_proj
    and up_proj; per sequence, its logits. What ranks gather is held twice, as it arrives and in the order of the
    columns: the inputs of down_proj, and logits."""
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    if tensor_parallel == 1:
        return 4 * (tokens * (3 * hidden + 2 * inner) + sequences * vocab)
    own = len(part(inner, 0, tensor_parallel))
    return 4 * (tokens * (3 * hidden + 2 * own + 2 * inner) + 2 * sequences * vocab)


def _bfloat16_weights(config: ModelConfig, tensor_parallel: int, pipeline_parallel: int) -> dict[str, int]:
    """Bytes by module, as vLLM divides them: ranks of the first stage divide the embedding, and a tied head is another
    copy of it on the last of several stages."""
    sizes = {name: 2 * _size(config, name) for name in (*config.layer_linears, "lm_head")}
    if config.tie_word_embeddings and pipeline_parallel == 1:
        del sizes["lm_head"]
    return sizes | {EMBEDDING: 2 * len(part(config.vocab_size, 0, tensor_parallel)) * config.hidden_size}


def _weights(config: ModelConfig, linear: LinearRecipe | None) -> dict[str, int]:
    sizes = {name: _linear(config, name, linear) for name in (*config.layer_linears, "lm_head")}
    embedding = config.vocab_size * config.hidden_size
    return sizes | {EMBEDDING: embedding * (4 if config.dtype == "float32" else 2)}


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
    """Bytes per token in one layer."""
    heads, dim = config.num_kv_heads, config.head_dim
    if attention is None:
        return 2 * heads * dim * FLOAT_CACHE_BYTES
    scale = None if attention.kv_scale == "token" else np.ones((heads, dim), np.float32)
    return AttentionScheme(config.num_heads, heads, dim, k_scale=scale, v_scale=scale).bytes_per_token
