"""Writes GGUF files for llama.cpp, tensor by tensor."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checkpoint.model_config import ModelConfig
from ...kernels.arrays import Floats
from .config import yarn_magnitude
from .reader import gguf_package
from .tensors import ROPE_FREQS

BLOCK = 32
"""Inputs of a linear that share a scale in Q8_0."""
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class OutTensor:
    """A tensor to write: `make` returns its values, float32, or the bytes [rows, bytes] of Q8_0."""

    name: str
    shape: tuple[int, ...]
    is_q8_0: bool
    make: Callable[[], Floats | Bytes]


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the model's architecture."""
    return "llama" if config.model_type == "mistral" else config.model_type


def obstacles(config: ModelConfig) -> list[str]:
    """The reasons why llama.cpp's architecture does not compute what the model does."""
    reasons = []
    if any(window is not None and window < config.max_position for window in config.sliding_windows):
        reasons.append(f"llama.cpp has no sliding window for the architecture {architecture(config)}")
    rope = config.rope
    if rope.rope_type == "dynamic":
        reasons.append("llama.cpp has no RoPE of type dynamic")
    if rope.rope_type == "yarn" and not (rope.truncate and rope.mscale is None and rope.mscale_all_dim is None):
        reasons.append("GGUF files cannot express truncate, mscale and mscale_all_dim of YaRN")
    if rope.rope_type == "yarn" and (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
        reasons.append(
            f"llama.cpp's {architecture(config)} has YaRN with beta_fast 32 and beta_slow 1, "
            f"not {rope.beta_fast:g} and {rope.beta_slow:g}"
        )
    if rope.attention_factor == 0:
        reasons.append("llama.cpp has no attention_factor 0 of YaRN")
    if config.model_type == "qwen3" and config.qkv_bias:
        reasons.append("llama.cpp's qwen3 has no biases in the attention")
    odd = next((name for name, size in config.linears.items() if size.k % BLOCK), None)
    if odd is not None:
        reasons.append(f"{odd} has {config.linears[odd].k} inputs, and Q8_0 has blocks of {BLOCK}")
    return reasons


def model_metadata(config: ModelConfig) -> dict[str, Any]:
    """The metadata of the model, without those of its tokenizer."""
    arch, rope = architecture(config), config.rope
    found: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_position,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(rope.theta),
        "vocab_size": config.vocab_size,
    }
    if rope.rope_type in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope.rope_type, "rope.scaling.factor": float(rope.factor)}
    if rope.rope_type in ("linear", "yarn", "llama3"):
        found["rope.scaling.original_context_length"] = rope.original_max_position
    if rope.rope_type == "yarn":
        # Of YaRN's keys, llama.cpp reads only this one for these architectures, and multiplies it by YaRN's magnitude.
        multiplier = 1.0 if rope.attention_factor is None else rope.attention_factor / yarn_magnitude(rope.factor)
        if multiplier != 1.0:
            found["rope.scaling.attn_factor"] = multiplier
    package = gguf_package()
    general = {
        "general.quantization_version": package.GGML_QUANT_VERSION,
        "general.file_type": int(package.LlamaFileType.MOSTLY_Q8_0),
    }
    return general | {f"{arch}.{key}": value for key, value in found.items()}


def rope_tensors(config: ModelConfig) -> list[OutTensor]:
    """Llama 3.1's divisors of RoPE's frequencies (arXiv 2407.21783), [head_dim / 2]; none for other types."""
    rope, dim = config.rope, config.head_dim
    if rope.rope_type != "llama3":
        return []
    turns = rope.original_max_position * rope.theta ** (-np.arange(0, dim, 2) / dim) / (2 * math.pi)
    smooth = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    divisors = (1.0 / ((1.0 - smooth) / rope.factor + smooth)).astype(np.float32)
    return [OutTensor(ROPE_FREQS, divisors.shape, False, lambda: divisors)]


def rows_of(config: ModelConfig, kind: str) -> npt.NDArray[np.int64] | None:
    """The order in which llama.cpp has the outputs of q_proj or k_proj; None: ours. Its architecture llama rotates
    neighboring channels, ours the two halves of a head."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(kind)
    if heads is None or architecture(config) != "llama":
        return None
    return np.arange(heads * config.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def q8_0_of_rows(weight: npt.NDArray[np.int8], scale: Floats) -> Bytes:
    """The bytes [n, k / 32 · 34] of an int8 weight [n, k] with a scale [n] for each output, which all blocks of a row
    repeat in float16, the type of scales in Q8_0."""
    n, blocks = len(weight), weight.shape[1] // BLOCK
    out = np.empty((n, blocks, 2 + BLOCK), np.uint8)
    out[..., :2] = np.ascontiguousarray(scale.astype(np.float16)[:, None]).view(np.uint8)[:, None]
    out[..., 2:] = np.ascontiguousarray(weight).view(np.uint8).reshape(n, blocks, BLOCK)
    return out.reshape(n, -1)


def q8_0_of_floats(weight: Floats) -> Bytes:
    """The bytes of a float weight [n, k], rounded to nearest with a scale for each block."""
    package = gguf_package()
    packed: Bytes = package.quants.quantize(weight, package.GGMLQuantizationType.Q8_0)
    return packed


def write_gguf(path: Path, arch: str, metadata: Mapping[str, Any], tensors: Sequence[OutTensor]) -> None:
    """Write a file; one tensor is in memory at a time."""
    package = gguf_package()
    writer = package.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        kind = package.GGMLQuantizationType.Q8_0 if tensor.is_q8_0 else None
        shape = tensor.shape
        if tensor.is_q8_0:
            shape = (*shape[:-1], shape[-1] // BLOCK * (2 + BLOCK))
        dtype = np.dtype(np.uint8 if tensor.is_q8_0 else np.float32)
        writer.add_tensor_info(tensor.name, shape, dtype, math.prod(shape) * dtype.itemsize, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)
