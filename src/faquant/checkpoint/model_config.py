"""ModelConfig: the validated content of config.json, as plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import CheckpointError, UnsupportedError, UsageError
from .families import FAMILIES, Family
from .files import read_object
from .json_object import LARGEST_INTEGER, JsonObject, shown
from .rope_config import NO_ROPE, RopeConfig, parse_ropes

DTYPES = ("float32", "float16", "bfloat16")
MAX_LAYERS = 4096

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linears of a layer by their checkpoint names."""

KvCacheDtype = Literal["auto", "bfloat16"]
"""`auto`: as the checkpoint specifies, int8 or float32."""


class LinearSize(NamedTuple):
    """Number of outputs and inputs of a linear, and whether it has a bias."""

    n: int
    k: int
    has_bias: bool


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only model. Sizes are in elements, `max_position` is in tokens.

    Attributes:
        rope, more_ropes, rope_of_layer: the kinds of RoPE, and for each layer the number of its kind in `ropes`; empty:
            all layers have `rope`.
        sliding_windows: for each layer; None: full attention.
        embedding_multiplier: the factor on the embedding's rows that enter the first layer.
        score_factor: the factor on q·k/√head_dim.
        logits_scaling: the divisor of the logits.
    """

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
    sliding_windows: tuple[int | None, ...]
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    context_note: str | None = None
    """Why `max_position` is less than config.json says; None if it is not."""
    more_ropes: tuple[RopeConfig, ...] = ()
    rope_of_layer: tuple[int, ...] = ()
    embedding_multiplier: float = 1.0
    score_factor: float = 1.0
    logits_scaling: float = 1.0

    @property
    def family(self) -> Family:
        """What its model type computes differently."""
        return FAMILIES[self.model_type]

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The kinds of RoPE."""
        return self.rope, *self.more_ropes

    def rope_kind(self, layer: int) -> int:
        """The number in `ropes` of a layer's kind of RoPE."""
        return self.rope_of_layer[layer] if self.rope_of_layer else 0

    def qk_norm_size(self, name: str) -> int:
        """The number of weights of `q_norm` or `k_norm`."""
        heads = 1 if self.family.qk_norm != "all" else self.num_heads if name == "q_norm" else self.num_kv_heads
        return heads * self.head_dim

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.num_heads // self.num_kv_heads

    def linear_shape(self, name: str) -> tuple[int, int]:
        """[n, k] of the linear with this checkpoint name."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (q, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, q),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
            "lm_head": (self.vocab_size, hidden),
        }[name.rpartition(".")[2]]

    def has_bias(self, name: str) -> bool:
        """Whether the linear with this checkpoint name has a bias."""
        kind = name.rpartition(".")[2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            return self.qkv_bias
        return self.o_bias if kind == "o_proj" else self.mlp_bias and kind != "lm_head"

    @cached_property
    def linears(self) -> dict[str, LinearSize]:
        """All linears by checkpoint name, the head last."""
        names = (*self.layer_linears, "lm_head")
        return {name: LinearSize(*self.linear_shape(name), self.has_bias(name)) for name in names}

    @property
    def layer_linears(self) -> list[str]:
        """Checkpoint names of all linears of the layers, in order."""
        return [f"model.layers.{layer}.{name}" for layer in range(self.num_layers) for name in LINEARS]


def load_config(directory: Path) -> ModelConfig:
    """Read and check `directory`/config.json.

    Raises:
        UsageError: `directory` is a GGUF file.
        CheckpointError: the file is missing or contradicts itself.
        UnsupportedError: the architecture, or a feature that it uses, is not supported.
    """
    try:
        is_directory, is_file = directory.is_dir(), directory.is_file()
    except (OSError, ValueError):
        is_directory = is_file = False
    if is_file and directory.suffix.lower() == ".gguf":
        raise UsageError(
            f"{directory} is a GGUF file; convert it to a Hugging Face directory first: "
            f"faquant convert {directory} --to hf -o {directory.stem}"
        )
    if not is_directory:
        raise CheckpointError(f"{str(directory)[:200]} is not a directory. Pass a Hugging Face model directory.")
    return parse_config(read_config(directory), str(directory / "config.json"))


def read_config(directory: Path) -> dict[str, Any]:
    """The JSON object of config.json. Raises: CheckpointError: it cannot be read."""
    return read_object(directory, "config.json", last_value_counts=True)


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Parse the JSON object of config.json; `source` is its name in errors.

    Missing keys get the defaults of transformers, except for sizes and the context length, which are required.

    Raises: as load_config.
    """
    reader = JsonObject(raw, source)
    model_type = _model_type(reader)
    family = FAMILIES[model_type]
    heads = reader.integer("num_attention_heads")
    known = not family.names_kv_heads or "num_key_value_heads" in raw
    kv_heads = reader.integer("num_key_value_heads", heads if known else None)
    hidden = reader.integer("hidden_size")
    if heads % kv_heads:
        raise CheckpointError(
            f"{source}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})."
        )
    head_dim = _head_dim(reader, family, hidden, heads)
    layers = reader.integer("num_hidden_layers", high=MAX_LAYERS)
    max_position = reader.integer("max_position_embeddings")
    rope, rope_with_window = parse_ropes(reader, max_position, head_dim, family)
    context, context_note = _context(reader, rope, max_position, family)
    _refuse_other_arithmetic(reader, model_type, head_dim, layers)
    without_rope = _layers_without_rope(reader, family, layers)
    windows = _sliding_windows(reader, family, layers, without_rope)
    # Each layer's other kind of RoPE, if it has one.
    others = [NO_ROPE if no_rope else None for no_rope in without_rope]
    if rope_with_window not in (None, rope):
        others = [None if window is None else rope_with_window for window in windows]
    factors = _factors(reader, family, head_dim)
    attention_bias, mlp_bias = (
        reader.flag(key, False) and key in family.biases for key in ("attention_bias", "mlp_bias")
    )
    return ModelConfig(
        model_type=model_type,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.number("rms_norm_eps", family.eps) / factors.residual**2,
        embedding_multiplier=factors.embedding / factors.residual,
        score_factor=factors.scores,
        logits_scaling=factors.logits,
        max_position=context,
        context_note=context_note,
        rope=rope,
        more_ropes=tuple(dict.fromkeys(filter(None, others))),
        rope_of_layer=tuple(int(other is not None) for other in others) if any(others) else (),
        tie_word_embeddings=reader.flag("tie_word_embeddings", family.tied),
        qkv_bias=attention_bias or family.qkv_bias,
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm is not None,
        sliding_windows=windows,
        dtype=_dtype(reader),
        eos_token_ids=reader.token_ids("eos_token_id"),
        bos_token_id=next(iter(reader.token_ids("bos_token_id")), None),
    )


def _model_type(reader: JsonObject) -> str:
    """The model type, after checking that it and the other features of the configuration are supported."""
    raw, source = reader.raw, reader.source
    named, code = raw.get("model_type"), raw.get("auto_map")
    published = FAMILIES[named].published_code if isinstance(named, str) and named in FAMILIES else None
    if code and not (published and isinstance(code, Mapping) and code.get("AutoModelForCausalLM") == published):
        raise UnsupportedError(
            f"{source} refers to custom code (auto_map), which faquant never runs. "
            "Remove auto_map if transformers' own class for its model_type computes the model."
        )
    model_type = reader.text("model_type")
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"{source}: model_type {shown(model_type)} is not supported; these are: {', '.join(FAMILIES)}."
        )
    architectures = raw.get("architectures")
    if architectures is not None:
        if not isinstance(architectures, list):
            raise reader.wrong("architectures", architectures, "a list of class names")
        causal_lm = FAMILIES[model_type].causal_lm
        base = causal_lm.replace("ForCausalLM", "Model")  # names its tensors without `model.`
        if causal_lm not in architectures and base not in architectures:
            raise UnsupportedError(
                f"{source}: architectures {shown(architectures)} does not include {causal_lm}, "
                f"the causal language model of model_type {model_type!r}."
            )
    family = FAMILIES[model_type]
    activation = reader.text(family.activation_key, family.activation)
    if activation != family.activation:
        raise UnsupportedError(
            f"{source}: {family.activation_key} {shown(activation)} is not supported; only {family.activation} is."
        )
    return model_type


def _refuse_other_arithmetic(reader: JsonObject, model_type: str, head_dim: int, layers: int) -> None:
    """Refuse keys of other families that change what a layer computes. transformers' classes for this model type ignore
    them, but a config.json that sets them describes weights for other classes."""
    family = FAMILIES[model_type]
    neutral = {
        "attention_multiplier": head_dim**-0.5,  # Granite
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "logit_scale": 1.0,  # Cohere
        "query_pre_attn_scalar": float(head_dim),  # Gemma
        "scale_emb": 1.0,  # MiniCPM
        "scale_depth": layers**0.5,
        "dim_model_base": float(reader.integer("hidden_size")),
    }
    changed = [
        key
        for key, value in neutral.items()
        if key not in family.computes and not math.isclose(reader.number(key, value), value, rel_tol=1e-6)
    ]
    off = ["attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "attn_temperature_tuning"]
    off += ["use_bidirectional_attention"]
    if family.qk_norm is None:
        off += ["use_qk_norm", "qk_layernorm"]
    changed += [key for key in off if reader.raw.get(key) not in (None, False, 0)]
    rotated = reader.raw.get("no_rope_layers")  # Llama 4
    if rotated is not None and not family.no_rope and not _is_all_ones(rotated):
        changed.append("no_rope_layers")
    if changed:
        key = changed[0]
        raise UnsupportedError(
            f"{reader.source}: {key} {shown(reader.raw[key])} is not supported; {model_type} models do not compute it. "
            "If the weights do not need it, remove the key."
        )


class _Factors(NamedTuple):
    """Factors on the embedding, on q·k/√head_dim and on what layers add to the residual stream; the logits' divisor.

    The residual stream is computed divided by its factor, so that layers add their outputs as they are. Norms do not
    see that if their eps is divided by the square of the factor.
    """

    embedding: float = 1.0
    scores: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


def _factors(reader: JsonObject, family: Family, head_dim: int) -> _Factors:
    found = {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    if family.scaled_embedding:
        scalar = reader.number("query_pre_attn_scalar", 256.0)
        if scalar == 0:
            raise reader.wrong("query_pre_attn_scalar", 0, "greater than zero")
        hidden = reader.integer("hidden_size")
        return _Factors(embedding=math.sqrt(hidden), scores=math.sqrt(head_dim / scalar))
    if not set(found) <= set(family.computes):
        return _Factors()
    for key in found:
        found[key] = reader.number(key, 1.0)
        if found[key] == 0:
            raise reader.wrong(key, 0, "greater than zero")
    embedding, attention, residual, logits = found.values()
    return _Factors(embedding, attention * math.sqrt(head_dim), residual, logits)


def _is_all_ones(values: Any) -> bool:
    return isinstance(values, list) and all(value == 1 for value in values)


def _layers_without_rope(reader: JsonObject, family: Family, layers: int) -> list[bool]:
    """For each layer, whether it has no RoPE: 0 in no_rope_layers (sic), or else every no_rope_layer_interval-th."""
    if not family.no_rope:
        return [False] * layers
    rotated = reader.raw.get("no_rope_layers")
    if rotated is None:
        interval = reader.integer("no_rope_layer_interval", 4)
        return [(layer + 1) % interval == 0 for layer in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or any(type(one) is not int for one in rotated):
        raise reader.wrong("no_rope_layers", rotated, f"a list of 0 or 1 for each of the {layers} layers")
    return [one == 0 for one in rotated[:layers]]


def _head_dim(reader: JsonObject, family: Family, hidden: int, heads: int) -> int:
    if reader.raw.get("head_dim") is not None or family.names_head_dim:
        head_dim = reader.integer("head_dim")
    elif hidden % heads == 0:
        head_dim = hidden // heads
    else:
        raise CheckpointError(
            f"{reader.source}: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), "
            "and the file has no head_dim."
        )
    if head_dim % 2:
        raise CheckpointError(
            f"{reader.source}: head_dim ({head_dim}) must be even, since RoPE rotates pairs of channels."
        )
    return head_dim


def _dtype(reader: JsonObject) -> str:
    name = (reader.text("dtype", "") or reader.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise UnsupportedError(
            f"{reader.source}: dtype {shown(name)} is not supported; these are: {', '.join(DTYPES)}."
        )
    return name


def _sliding_windows(
    reader: JsonObject, family: Family, layers: int, without_rope: Sequence[bool]
) -> tuple[int | None, ...]:
    """The window of each layer. As in transformers, some families have none, whatever the keys say."""
    window: int | None = None
    if family.windows == "all" or (family.windows == "switched" and reader.flag("use_sliding_window", False)):
        named = reader.raw.get("sliding_window", family.window) is not None
        window = reader.integer("sliding_window", family.window) if named else None
    kinds = reader.raw.get("layer_types")
    if kinds is None and family.full_every:
        number = reader.integer(family.pattern_key, family.full_every) if family.pattern_key else family.full_every
        every = [(layer + 1) % number == 0 for layer in range(layers)]
        kinds = ["full_attention" if full else "sliding_attention" for full in every]
    if kinds is not None:
        return _windows_of_kinds(reader, layers, window, kinds)
    if window is None or family.windows == "all":
        return (window,) * layers
    if family.no_rope:
        return tuple(window if no_rope else None for no_rope in without_rope)
    first = reader.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(layers))


def _windows_of_kinds(reader: JsonObject, layers: int, window: int | None, kinds: Any) -> tuple[int | None, ...]:
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise UnsupportedError(
            f"{reader.source}: layer_types must list full_attention or sliding_attention for each of the "
            f"{layers} layers."
        )
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError(
            f"{reader.source}: layer_types has sliding_attention, but no sliding window is set "
            "(sliding_window, and for some families use_sliding_window)."
        )
    return tuple(None if kind == "full_attention" else window for kind in kinds)


def _context(reader: JsonObject, rope: RopeConfig, max_position: int, family: Family) -> tuple[int, str | None]:
    """Tokens of context after scaling, and why there are not more.

    config.json has the scaled context for Llama 3.1 and Gemma; for the other kinds of RoPE it has the original one.
    """
    scaled, chunks = max_position, reader.raw.get("dual_chunk_attention_config")
    if rope.rope_type in ("linear", "dynamic", "yarn") and not family.scaled_context:
        scaled = max(max_position, int(rope.original_max_position * rope.factor))
    if scaled > LARGEST_INTEGER:
        raise CheckpointError(f"{reader.source}: a context of {scaled} tokens (RoPE factor {rope.factor}) is too long.")
    if not chunks:
        return scaled, None
    if not isinstance(chunks, Mapping):
        raise reader.wrong("dual_chunk_attention_config", chunks, "an object")
    # Up to here the model was trained with plain attention; beyond, Qwen2.5-1M needs the chunks (arXiv 2402.17463).
    table = JsonObject(chunks, f"{reader.source}, dual_chunk_attention_config")
    original = table.integer("original_max_position_embeddings")
    if original >= scaled:
        return scaled, None
    return original, f"{scaled:,} need dual chunk attention, which faquant does not compute"
