"""ModelConfig: what config.json says about a model, checked once, as plain data."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, UnsupportedError

MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
DTYPES = ("float32", "float16", "bfloat16")
MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding as in config.json's `rope_parameters` (or `rope_theta` and `rope_scaling`).

    `original_max_position` is in tokens.
    """

    rope_type: str
    theta: float
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only model of the LLaMA family. Sizes count elements; `max_position` counts tokens."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]  # for each layer; None: full attention
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def group_size(self) -> int:
        """Query heads for each key/value head."""
        return self.num_heads // self.num_kv_heads


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from `path`.

    Raises:
        CheckpointError: the file is missing, larger than `limit` bytes, or no JSON object.
    """
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} is larger than {limit} bytes; that is no file of this kind.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. Is this a Hugging Face model directory?") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def load_config(directory: Path) -> ModelConfig:
    """Read and check `directory`/config.json.

    Raises:
        CheckpointError: the file is missing or contradicts itself.
        UnsupportedError: the architecture, or a feature it asks for, is not one this program has.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory. Name a Hugging Face model directory.")
    path = directory / "config.json"
    return parse_config(read_json(path), str(path))


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Turn the JSON object of config.json into a ModelConfig; `source` is named in errors."""
    reader = _Reader(raw, source)
    if "auto_map" in raw:
        raise UnsupportedError(
            f"{source} asks for code of its own (auto_map), which is never run. "
            "Remove auto_map if the model is a plain Llama, Mistral, Qwen2 or Qwen3."
        )
    model_type = reader.text("model_type")
    if model_type not in MODEL_TYPES:
        raise UnsupportedError(
            f"{source}: model_type {model_type!r} is not supported; these are: {', '.join(MODEL_TYPES)}."
        )
    architectures = raw.get("architectures")
    if architectures is not None and MODEL_TYPES[model_type] not in architectures:
        raise UnsupportedError(
            f"{source}: architectures {architectures!r} does not name {MODEL_TYPES[model_type]}, "
            f"the causal language model of model_type {model_type!r}."
        )
    if reader.text("hidden_act", "silu") != "silu":
        raise UnsupportedError(f"{source}: hidden_act {raw['hidden_act']!r} is not supported; only silu is.")
    if reader.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{source}: partial_rotary_factor other than 1 is not supported.")

    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    hidden = reader.integer("hidden_size")
    if heads % kv_heads:
        raise CheckpointError(
            f"{source}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})."
        )
    if raw.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"{source}: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), "
            "and there is no head_dim."
        )
    head_dim = reader.integer("head_dim", 0) or hidden // heads
    if head_dim % 2:
        raise CheckpointError(f"{source}: head_dim ({head_dim}) must be even, since RoPE turns pairs of channels.")
    layers = reader.integer("num_hidden_layers")
    max_position = reader.integer("max_position_embeddings")
    rope = _parse_rope(reader, max_position)
    bias = reader.flag("attention_bias", model_type == "qwen2")
    return ModelConfig(
        model_type=model_type,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        max_position=_scaled_context(rope, max_position),
        rope=rope,
        tie_word_embeddings=reader.flag("tie_word_embeddings", False),
        qkv_bias=True if model_type == "qwen2" else bias,
        o_bias=bias and model_type in ("llama", "qwen3"),
        mlp_bias=reader.flag("mlp_bias", False) and model_type == "llama",
        qk_norm=model_type == "qwen3",
        sliding_windows=_sliding_windows(reader, model_type, layers),
        dtype=_dtype(reader),
        eos_token_ids=reader.token_ids("eos_token_id"),
        bos_token_id=next(iter(reader.token_ids("bos_token_id")), None),
    )


def _dtype(reader: "_Reader") -> str:
    name = (reader.text("dtype", "") or reader.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(f"{reader.source}: dtype {name!r} is not supported; these are: {', '.join(DTYPES)}.")
    return name


def _sliding_windows(reader: "_Reader", model_type: str, layers: int) -> tuple[int | None, ...]:
    window = reader.integer("sliding_window", 0) or None
    if window is None or model_type == "llama":
        return (None,) * layers
    kinds = reader.raw.get("layer_types")
    if kinds is not None:
        known = {"full_attention": None, "sliding_attention": window}
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise UnsupportedError(
                f"{reader.source}: layer_types must list full_attention or sliding_attention for each of the "
                f"{layers} layers."
            )
        return tuple(known[kind] for kind in kinds)
    if model_type == "mistral":
        return (window,) * layers
    if not reader.flag("use_sliding_window", False):
        return (None,) * layers
    first = reader.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(layers))


def _scaled_context(rope: RopeConfig, max_position: int) -> int:
    """Tokens of context after scaling. Llama 3.1 writes them into config.json; the other kinds write the original's."""
    if rope.rope_type in ("linear", "dynamic"):
        return int(max_position * rope.factor)
    if rope.rope_type == "yarn":
        return max(max_position, int(rope.original_max_position * rope.factor))
    return max_position


def _parse_rope(reader: "_Reader", max_position: int) -> RopeConfig:
    new, old = reader.raw.get("rope_parameters"), reader.raw.get("rope_scaling")
    table = new if new is not None else old if old is not None else {}
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{reader.source}: rope_parameters must be an object, not {table!r}.")
    rope = _Reader(table, f"{reader.source}, rope parameters")
    rope_type = rope.text("rope_type", "") or rope.text("type", "default")
    if rope_type not in ROPE_TYPES:
        raise UnsupportedError(
            f"{reader.source}: RoPE type {rope_type!r} is not supported; these are: {', '.join(ROPE_TYPES)}."
        )
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{reader.source}: partial_rotary_factor other than 1 is not supported.")
    theta = rope.number("rope_theta", 0.0) or reader.number("rope_theta", 10000.0)
    if theta <= 1.0:
        raise CheckpointError(f"{reader.source}: rope_theta must be greater than 1, not {theta}.")
    factor = 1.0 if rope_type == "default" else rope.number("factor")
    if factor < 1.0:
        raise CheckpointError(f"{reader.source}: the RoPE factor must be at least 1, not {factor}.")
    original = rope.integer("original_max_position_embeddings", 0)
    original = original or reader.integer("original_max_position_embeddings", 0)
    if rope_type == "llama3" and not original:
        raise CheckpointError(f"{reader.source}: RoPE type llama3 needs original_max_position_embeddings.")
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    if rope_type == "llama3" and not 0 < low < high:
        raise CheckpointError(f"{reader.source}: low_freq_factor must be positive and below high_freq_factor.")
    return RopeConfig(
        rope_type=rope_type,
        theta=theta,
        factor=factor,
        original_max_position=original or max_position,
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
        low_freq_factor=low,
        high_freq_factor=high,
    )


class _Reader:
    """Typed access to a JSON object; a wrong value is an error that names file, key and value."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.source} has no {key}.")
        return default

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {key} must be {wanted}, not {value!r}.")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        value = self._value(key, default)
        if key not in self.raw or self.raw[key] is None:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
            raise self._wrong(key, value, f"a whole number of at least {low}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self._wrong(key, value, "a finite number that is not negative")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.raw.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in values):
            raise self._wrong(key, value, "a token id or a list of them")
        return tuple(values)
