"""GGUF in, Hugging Face directory out: `convert_gguf`.

The arithmetic of the quantized blocks is the `gguf` package's.
"""

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from ..config import MODEL_TYPES
from ..errors import CheckpointError, OutputError, UnsupportedError
from .gguf_reader import GgufFile, GgufTensor, gguf_package, read_gguf
from .gguf_tokenizer import build_tokenizer, token_id, tokenizer_config

ARCHITECTURES = ("llama", "qwen2", "qwen3")
CHUNK_ELEMENTS = 1 << 24  # dequantized at once: 64 MiB of float32

_DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}

# Tensor names within a layer, and at the top, to Hugging Face names.
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
ROPE_FREQS = "rope_freqs.weight"

# Keys of the architecture that are read, or that say nothing about the mathematics.
_KNOWN_KEYS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.causal"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}


def convert_gguf(
    path: Path, output: Path, dtype: str = "float32", progress: Callable[[int, int], None] | None = None
) -> None:
    """Convert the GGUF file `path` to a Hugging Face directory `output`: config, weights, tokenizer.

    Llama, Mistral, Qwen2 and Qwen3 are known. Weights are dequantized tensor by tensor to `dtype`, one of float32
    (exact), bfloat16 and float16 (both rounded). Everything is written to a temporary directory beside `output`,
    which is renamed at the end. `progress` is called with the number of tensors written and their total.

    Raises:
        CheckpointError: the file is missing, damaged, or contradicts itself.
        UnsupportedError: its architecture, a feature or a quantization is not known here.
        OutputError: `output` exists, or cannot be written.
    """
    if dtype not in _DTYPES:
        raise UnsupportedError(f"dtype {dtype!r} is not supported; these are: {', '.join(_DTYPES)}.")
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise OutputError(f"{output} exists already. Name a new directory, or remove this one first.")
    gguf = read_gguf(path)
    config = build_config(gguf, dtype)
    plan = _plan_tensors(gguf, config)
    tokenizer = build_tokenizer(gguf.metadata, gguf.source)
    last = max(tokenizer.get_vocab().values())
    if last >= config["vocab_size"]:
        raise CheckpointError(
            f"{gguf.source} has a token with the id {last} but embeddings for {config['vocab_size']} tokens only."
        )
    files = {
        "config.json": config,
        "generation_config.json": {
            key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config
        },
        "tokenizer_config.json": tokenizer_config(gguf.metadata, config["max_position_embeddings"], gguf.source),
    }
    partial = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
        for name, content in files.items():
            (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        with (partial / "model.safetensors").open("wb") as stream:
            _write_weights(stream, gguf, plan, dtype, progress)
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())  # the rename must not reach the disk before what it names
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp's directories are for their owner alone
        partial.rename(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error}. Nothing was left behind.") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


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
            value = value[0]  # one for each layer, all alike
        if value is None and default is not None:
            return default
        if isinstance(value, list):
            raise UnsupportedError(f"{self.source}: {self.arch}.{key} differs between layers, which is not supported.")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise CheckpointError(f"{self.source}: {self.arch}.{key} must be a whole number above 0, not {value!r}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{self.source}: {self.arch}.{key} must be a number above 0, not {value!r}.")
        return float(value)


def build_config(gguf: GgufFile, dtype: str) -> dict[str, Any]:
    """The content of config.json: what the metadata says, and what the presence of tensors tells.

    Raises:
        CheckpointError: a key is missing or wrong.
        UnsupportedError: the architecture, or something its metadata asks for, is not known here.
    """
    arch = gguf.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise UnsupportedError(
            f"{gguf.source}: architecture {arch!r} is not supported; {', '.join(ARCHITECTURES)} are."
        )
    keys = _Keys(gguf, arch)
    for key, value in gguf.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name != key and name not in _KNOWN_KEYS and value not in (0, False, "none"):
            raise UnsupportedError(f"{gguf.source} sets {key} to {value!r}, which is not supported.")
    if keys.get("attention.causal") is False:
        raise UnsupportedError(f"{gguf.source}: attention that is not causal is not supported.")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{gguf.source}: keys and values of different lengths are not supported.")
    if keys.integer("rope.dimension_count", head_dim) != head_dim or head_dim % 2:
        raise UnsupportedError(f"{gguf.source}: RoPE must turn all {head_dim} channels of a head, in pairs.")
    context = keys.integer("context_length")
    window = context if keys.get("attention.sliding_window") == 0 else keys.integer("attention.sliding_window", context)
    # llama.cpp calls Mistral "llama"; a window is what tells them apart.
    model_type = "mistral" if window < context and arch == "llama" else arch
    if window < context and model_type != "mistral":
        raise UnsupportedError(f"{gguf.source}: which layers of {arch} use the sliding window, GGUF does not say.")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{gguf.source} has no embedding token_embd.weight; is it one part of a split file?")
    rope = _rope_parameters(gguf, keys, head_dim)
    config: dict[str, Any] = {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if rope["rope_type"] != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    if model_type == "mistral":
        config["sliding_window"] = window if window < context else None
    elif model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
        config["mlp_bias"] = "blk.0.ffn_down.bias" in gguf.tensors
    elif model_type == "qwen3":
        config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    stops = [token_id(gguf.metadata, name, gguf.source) for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(stop for stop in stops if stop is not None))
    ids = {
        "bos_token_id": token_id(gguf.metadata, "bos", gguf.source),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": token_id(gguf.metadata, "padding", gguf.source),
    }
    config |= {key: value for key, value in ids.items() if value is not None}
    return config


def _rope_parameters(gguf: GgufFile, keys: _Keys, head_dim: int) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", 10000.0)
    kind = keys.get("rope.scaling.type") or ("none" if keys.get("rope.scale_linear") is None else "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    freqs = gguf.tensors.get(ROPE_FREQS)
    if freqs is not None:
        if kind != "none" and factor != 1.0:
            raise UnsupportedError(f"{gguf.source} scales RoPE by {kind} and by {ROPE_FREQS} at once.")
        values = np.concatenate([chunk.numpy().ravel() for chunk in _float_chunks(gguf, freqs, None)])
        original = keys.integer("rope.scaling.original_context_length", 8192)
        return rope | _llama3_parameters(gguf, values, theta, head_dim, original)
    # ggml multiplies YaRN's own magnitude by this; Hugging Face's attention_factor replaces it.
    magnitude = keys.number("rope.scaling.attn_factor", 1.0) * keys.number("rope.scaling.yarn_attn_factor", 1.0)
    if magnitude != 1.0 and (kind != "yarn" or factor == 1.0):
        raise UnsupportedError(f"{gguf.source}: RoPE with the magnitude {magnitude} is supported with yarn only.")
    if kind == "none" or factor == 1.0:
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise UnsupportedError(f"{gguf.source}: RoPE scaling {kind!r} is not supported; linear and yarn are.")
    rope |= {"rope_type": "yarn", "factor": factor}
    original = keys.get("rope.scaling.original_context_length")
    if original is None:
        raise CheckpointError(f"{gguf.source} scales RoPE by yarn without rope.scaling.original_context_length.")
    rope["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    for name in ("beta_fast", "beta_slow"):
        if keys.get(f"rope.scaling.yarn_{name}") is not None:
            rope[name] = keys.number(f"rope.scaling.yarn_{name}")
    if magnitude != 1.0:
        rope["attention_factor"] = magnitude * (0.1 * math.log(factor) + 1.0)
    return rope


def _llama3_parameters(
    gguf: GgufFile, divisors: npt.NDArray[np.float32], theta: float, head_dim: int, original: int
) -> dict[str, Any]:
    """The parameters of Llama 3.1's RoPE whose divisors of the frequencies, [head_dim / 2], the file holds.

    Only the largest divisor can be read off; the others must then come out of Llama 3.1's published settings.
    """
    if divisors.shape == (head_dim // 2,) and np.all(divisors == 1.0):
        return {}
    factor, low, high = float(str(divisors.max())), 1.0, 4.0
    turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise UnsupportedError(
            f"{gguf.source}: the RoPE factors in {ROPE_FREQS} are not Llama 3.1's, so config.json has no words for "
            "them. Start from the model's Hugging Face directory instead."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


@dataclass(frozen=True)
class _Planned:
    """A tensor to write: `rows` orders the rows of `tensor` as Hugging Face has them (None: as they are)."""

    name: str
    tensor: GgufTensor
    rows: npt.NDArray[np.int64] | None


def _plan_tensors(gguf: GgufFile, config: Mapping[str, Any]) -> list[_Planned]:
    """Every tensor the model needs, checked: all are there, each has its shape, and none is left over."""
    plan = []
    left_over = set(gguf.tensors) - {ROPE_FREQS}
    for name, hf_name, shape in _expected_tensors(config):
        tensor = gguf.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{gguf.source} has no tensor {name!r}; is it one part of a split file?")
        if tensor.shape != shape:
            raise CheckpointError(f"{gguf.source}: tensor {name!r} has shape {tensor.shape}, not {shape}.")
        left_over.remove(name)
        # The llama architecture of ggml turns neighbouring channels together, Hugging Face's the two halves of a head.
        rotated = config["model_type"] in ("llama", "mistral") and name.split(".")[-2] in ("attn_q", "attn_k")
        rows = None
        if rotated and gguf.metadata["general.architecture"] == "llama":
            pairs = np.arange(shape[0]).reshape(-1, config["head_dim"] // 2, 2)
            rows = pairs.swapaxes(1, 2).ravel()
        plan.append(_Planned(hf_name, tensor, rows))
    if left_over:
        raise UnsupportedError(
            f"{gguf.source} holds {len(left_over)} tensors that no plain {config['model_type']} model has, among them "
            f"{min(left_over)!r}."
        )
    return plan


def _expected_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """GGUF name, Hugging Face name and shape of each tensor of the model."""
    hidden, middle, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    yield "token_embd.weight", "model.embed_tokens.weight", (config["vocab_size"], hidden)
    weights: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate": (middle, hidden),
        "ffn_up": (middle, hidden),
        "ffn_down": (hidden, middle),
    }
    if config["model_type"] == "qwen3":
        weights |= {"attn_q_norm": (head_dim,), "attn_k_norm": (head_dim,)}
    biased = set(_ATTENTION[:3] if config["model_type"] == "qwen2" else ())
    biased |= set(_ATTENTION if config.get("attention_bias") else ())
    biased |= set(_MLP if config.get("mlp_bias") else ())
    for layer in range(config["num_hidden_layers"]):
        for name, shape in weights.items():
            hf_name = f"model.layers.{layer}.{_LAYER_NAMES[name]}"
            yield f"blk.{layer}.{name}.weight", f"{hf_name}.weight", shape
            if name in biased:
                yield f"blk.{layer}.{name}.bias", f"{hf_name}.bias", shape[:1]
    yield "output_norm.weight", "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", "lm_head.weight", (config["vocab_size"], hidden)


def _float_chunks(gguf: GgufFile, tensor: GgufTensor, rows: npt.NDArray[np.int64] | None) -> Iterator[torch.Tensor]:
    """The values of `tensor` in float32, some rows at a time; `rows` orders rows, for a vector its elements."""
    package = gguf_package()
    packed = tensor.packed
    vector = len(tensor.shape) == 1
    step = max(1, CHUNK_ELEMENTS // tensor.shape[-1])
    for start in range(0, packed.shape[0], step):
        end = min(start + step, packed.shape[0])
        chunk = packed[start:end] if rows is None or vector else packed[rows[start:end]]
        kind = package.GGMLQuantizationType(tensor.quantization)
        try:
            values = package.quants.dequantize(np.ascontiguousarray(chunk), kind)
        except NotImplementedError:
            raise UnsupportedError(
                f"{gguf.source}: tensor {tensor.name!r} is {kind.name}, which the package gguf cannot dequantize."
            ) from None
        values = np.array(values[:, rows] if rows is not None and vector else values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{gguf.source}: tensor {tensor.name!r} holds values that are not finite.")
        yield torch.from_numpy(values)


def _write_weights(
    stream: BinaryIO, gguf: GgufFile, plan: list[_Planned], dtype: str, progress: Callable[[int, int], None] | None
) -> None:
    """Write one safetensors file: the header's length and the header, then the tensors in the order of `plan`."""
    name, torch_dtype = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for item in plan:
        size = math.prod(item.tensor.shape) * torch_dtype.itemsize
        header[item.name] = {
            "dtype": name,
            "shape": list(item.tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for done, item in enumerate(plan, 1):
        for chunk in _float_chunks(gguf, item.tensor, item.rows):
            values = chunk.to(torch_dtype)
            if not torch.isfinite(values).all():
                raise UnsupportedError(
                    f"{gguf.source}: tensor {item.tensor.name!r} does not fit into {dtype}; use float32 or bfloat16."
                )
            stream.write(values.view(torch.uint8).numpy().data)
        if progress is not None:
            progress(done, len(plan))
