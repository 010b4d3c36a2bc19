"""Converts the metadata of a GGUF file to the content of config.json."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checkpoint.families import FAMILIES
from ...errors import CheckpointError, UnsupportedError
from .reader import GgufFile
from .tensors import ROPE_FACTORS, ROPE_FREQS, float_chunks
from .tokenizer import end_ids, token_id

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "granite", "phi3", "olmo2", "gemma3")

# Keys of the architecture that are read, or that do not affect the computation.
_KNOWN_KEYS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.causal"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}
# Keys of single architectures, and what Hugging Face calls them; a file that lacks one means 1, or 1/√head_dim.
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_PATTERN = "attention.sliding_window_pattern"
_OWN_KEYS = {"granite": tuple(_GRANITE), "olmo2": (_PATTERN,), "gemma3": (_PATTERN, "rope.freq_base_swa")}


class _Keys:
    """Typed access to the metadata under the architecture's prefix."""

    def __init__(self, gguf: GgufFile, arch: str) -> None:
        self.source = gguf.source
        self.arch = arch
        self.raw: Mapping[str, Any] = gguf.metadata

    def get(self, key: str) -> Any:
        return self.raw.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one value per layer, all equal
        if value is None and default is not None:
            return default
        if isinstance(value, list):
            raise UnsupportedError(f"{self.source}: {self.arch}.{key} differs between layers, which is not supported.")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise CheckpointError(f"{self.source}: {self.arch}.{key} must be a positive whole number, not {value!r}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.source}: {self.arch}.{key} must be a positive number, not {value!r}.")
        return float(value)


def build_config(gguf: GgufFile, dtype: str) -> dict[str, Any]:
    """The content of config.json, derived from the metadata and from which tensors are present.

    Raises:
        CheckpointError: a key is missing or wrong.
        UnsupportedError: the architecture, or a feature in its metadata, is not supported.
    """
    arch = gguf.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{gguf.source}: architecture {arch!r} is not supported; these are: {', '.join(ARCHITECTURES)}."
        )
    keys = _Keys(gguf, arch)
    for key, value in gguf.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name != key and name not in (*_KNOWN_KEYS, *_OWN_KEYS.get(arch, ())) and value not in (0, False, "none"):
            raise UnsupportedError(f"{gguf.source} sets {key} to {value!r}, which is not supported.")
    if keys.get("attention.causal") is False:
        raise UnsupportedError(f"{gguf.source}: non-causal attention is not supported.")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{gguf.source}: keys and values of different lengths are not supported.")
    rotary = keys.integer("rope.dimension_count", head_dim)
    if head_dim % 2 or (rotary != head_dim and arch != "phi3"):
        raise UnsupportedError(f"{gguf.source}: RoPE must rotate all {head_dim} channels of a head, in pairs.")
    context = keys.integer("context_length")
    window = context if keys.get("attention.sliding_window") == 0 else keys.integer("attention.sliding_window", context)
    # llama.cpp uses "llama" for Mistral too; only Mistral has a window.
    model_type = "mistral" if window < context and arch == "llama" else {"gemma3": "gemma3_text"}.get(arch, arch)
    if arch == "olmo2" and keys.get(_PATTERN) is not None:
        model_type = "olmo3"
    if window < context and model_type not in ("mistral", "phi3", "olmo3", "gemma3_text"):
        raise UnsupportedError(f"{gguf.source}: GGUF does not specify which layers of {arch} use the sliding window.")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{gguf.source} has no embedding token_embd.weight; is the file truncated?")
    rope = _rope_parameters(gguf, keys, head_dim)
    if model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)}
        rope = {"full_attention": rope, "sliding_attention": local}
    if model_type == "olmo3":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": rope["rope_theta"]}}
    if rotary != head_dim:
        rope["partial_rotary_factor"] = rotary / head_dim
    max_position = context
    if rope.get("rope_type") == "linear":  # which scales max_position_embeddings
        max_position = keys.integer("rope.scaling.original_context_length", context)
    config: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].causal_lm],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        FAMILIES[model_type].activation_key: FAMILIES[model_type].activation,
        "max_position_embeddings": max_position,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if rotary != head_dim:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if "rope_theta" in rope:  # else each kind of layers has its own
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        outside = ("rope_theta", "partial_rotary_factor")
        config["rope_scaling"] = {key: value for key, value in rope.items() if key not in outside}
    if "original_max_position_embeddings" in rope and model_type == "phi3":
        config["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    if model_type == "gemma3_text":
        config |= _gemma3(keys, hidden, heads, head_dim, window)
    if model_type == "olmo3":
        config["sliding_window"] = window
        config["layer_types"] = _layer_types(keys, config["num_hidden_layers"])
    if model_type in ("mistral", "phi3"):
        config["sliding_window"] = window if window < context else None
    for key, part in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_down")):
        if key in FAMILIES[model_type].biases:
            config[key] = f"blk.0.{part}.bias" in gguf.tensors
    if arch == "granite":
        if keys.get("rope.scaling.finetuned") is False:
            raise UnsupportedError(f"{gguf.source}: Granite without RoPE (rope.scaling.finetuned) is not supported.")
        for key, name in _GRANITE.items():
            found = keys.number(key, head_dim**-0.5 if key == "attention.scale" else 1.0)
            config[name] = _shortest(found)
    ends = end_ids(gguf.metadata, gguf.source)
    ids = {
        "bos_token_id": token_id(gguf.metadata, "bos", gguf.source),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": token_id(gguf.metadata, "padding", gguf.source),
    }
    config |= {key: value for key, value in ids.items() if value is not None}
    return config


def unrecorded(gguf: GgufFile, config: Mapping[str, Any]) -> list[str]:
    """Settings that the original's config.json may have, but that llama.cpp's converter does not write.

    `config` is the result of `build_config`, which takes them to be absent.
    """
    names: list[str] = []
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    if gguf.metadata["general.architecture"] == "smollm3":
        names += ["no_rope_layers", "use_sliding_window"]  # llama.cpp's own rule is every fourth layer
    elif gguf.metadata["general.architecture"] in ("qwen2", "qwen3"):
        names += ["use_sliding_window", "dual_chunk_attention_config"]
    elif config["model_type"] == "llama" and rope["rope_type"] != "llama3":  # else it is known to be Mistral or Llama
        names += ["sliding_window (of Mistral)", "no_rope_layers"]
    if rope["rope_type"] == "default":
        names.append("rope_scaling of type dynamic")
    if rope["rope_type"] == "yarn":
        names += ["truncate"] if "attention_factor" in rope else ["truncate", "mscale", "mscale_all_dim"]
    return names


def _rope_parameters(gguf: GgufFile, keys: _Keys, head_dim: int) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", 10000.0)
    kind = keys.get("rope.scaling.type") or ("none" if keys.get("rope.scale_linear") is None else "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if keys.arch == "phi3" and ROPE_FACTORS[0] in gguf.tensors:
        return rope | _longrope_parameters(gguf, keys)
    freqs = gguf.tensors.get(ROPE_FREQS)
    if freqs is not None:
        if kind != "none" and factor != 1.0:
            raise UnsupportedError(f"{gguf.source} scales RoPE both by {kind} and by {ROPE_FREQS}.")
        values = np.concatenate([chunk.numpy().ravel() for chunk in float_chunks(gguf, freqs)])
        original = keys.integer("rope.scaling.original_context_length", 8192)
        return rope | _llama3_parameters(gguf, values, theta, head_dim, original)
    extrapolation = keys.get("rope.scaling.yarn_ext_factor")
    if extrapolation not in (None, 1.0 if kind == "yarn" else 0.0):
        raise UnsupportedError(f"{gguf.source}: yarn_ext_factor {extrapolation} is not supported with {kind}.")
    multiplier, replacement = (
        None if keys.get(f"rope.scaling.{key}") is None else keys.number(f"rope.scaling.{key}")
        for key in ("attn_factor", "yarn_attn_factor")
    )
    if keys.arch == "olmo2":  # its converter writes attention_factor as attn_factor
        multiplier, replacement = None, None if multiplier is None else _shortest(multiplier)
    magnitude = _magnitude(multiplier, replacement, factor)
    if kind != "yarn" and {multiplier, replacement} - {None, 1.0}:
        raise UnsupportedError(f"{gguf.source}: the RoPE magnitude {magnitude} is supported only with yarn.")
    if kind == "none" or (factor == 1.0 and magnitude in (None, 1.0)):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(f"{gguf.source}: RoPE scaling {kind!r} is not supported; these are: linear, yarn.")
    rope |= {"rope_type": "yarn", "factor": factor}
    original = keys.get("rope.scaling.original_context_length")
    if original is None:
        raise CheckpointError(f"{gguf.source} scales RoPE by yarn without rope.scaling.original_context_length.")
    rope["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}") is not None:
            rope[name] = keys.number(f"rope.scaling.yarn_{name}")
    if magnitude is not None:
        rope["attention_factor"] = magnitude
    return rope


def _gemma3(keys: _Keys, hidden: int, heads: int, head_dim: int, window: int) -> dict[str, Any]:
    """What llama.cpp's own code knows of Gemma 3: only the model of 27B, with 62 layers, scales q by another size."""
    pattern, layers = keys.get(_PATTERN), keys.integer("block_count")
    if isinstance(pattern, list):
        types = _layer_types(keys, layers)
    else:
        every = keys.integer(_PATTERN, 6)
        types = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    scalar = hidden // heads if layers == 62 else head_dim
    return {"sliding_window": window, "layer_types": types, "query_pre_attn_scalar": scalar}


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    pattern = keys.get(_PATTERN)
    if not isinstance(pattern, list) or len(pattern) != layers or any(type(one) is not bool for one in pattern):
        raise UnsupportedError(
            f"{keys.source}: {keys.arch}.{_PATTERN} must say for each of the {layers} layers whether it has the window."
        )
    return ["sliding_attention" if sliding else "full_attention" for sliding in pattern]


def _longrope_parameters(gguf: GgufFile, keys: _Keys) -> dict[str, Any]:
    """Of Phi-3, whose files have the divisors of the frequencies as tensors."""
    found = {}
    for name, key in zip(ROPE_FACTORS, ("short_factor", "long_factor"), strict=True):
        tensor = gguf.tensors.get(name)
        if tensor is None or len(tensor.shape) != 1:
            raise CheckpointError(f"{gguf.source} must have both of {' and '.join(ROPE_FACTORS)}, or neither.")
        values = np.concatenate([chunk.numpy().ravel() for chunk in float_chunks(gguf, tensor)])
        found[key] = [_shortest(value) for value in values]
    context, original = keys.integer("context_length"), keys.integer("rope.scaling.original_context_length")
    rope = {"rope_type": "longrope", **found, "original_max_position_embeddings": original}
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    own = math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original > 1 else 1.0
    return rope if np.float32(magnitude) == np.float32(own) else rope | {"attention_factor": _shortest(magnitude)}


def _shortest(value: float) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))


def _magnitude(multiplier: float | None, replacement: float | None, factor: float) -> float | None:
    """The factor on cosine and sine; None: YaRN's own.

    llama.cpp's converter writes transformers' attention_factor, which replaces YaRN's own magnitude, as
    yarn_attn_factor. llama.cpp multiplies the magnitude by attn_factor.
    """
    if multiplier in (None, 1.0):
        return replacement
    if replacement is not None:
        return multiplier * replacement
    # The shortest decimal number whose multiplier is this float32.
    own = yarn_magnitude(factor)
    shorter = (float(f"{multiplier * own:.{digits}g}") for digits in range(1, 17))
    return next((found for found in shorter if np.float32(found / own) == np.float32(multiplier)), multiplier * own)


def yarn_magnitude(factor: float) -> float:
    """YaRN's own factor on cosine and sine (arXiv 2309.00071, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _llama3_parameters(
    gguf: GgufFile, divisors: npt.NDArray[np.float32], theta: float, head_dim: int, original: int
) -> dict[str, Any]:
    """The parameters of Llama 3.1's RoPE, from the divisors of the frequencies, [head_dim / 2], in the file.

    The largest divisor is the factor; with it, Llama 3.1's published settings must result in the others.
    """
    if divisors.shape == (head_dim // 2,) and np.all(divisors == 1.0):
        return {}
    factor, low, high = float(str(divisors.max())), 1.0, 4.0
    rotations = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # over the original context
    smooth = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedError(
            f"{gguf.source}: the RoPE factors in {ROPE_FREQS} are not Llama 3.1's, so config.json cannot express "
            "them. Start from the model's Hugging Face directory instead."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
