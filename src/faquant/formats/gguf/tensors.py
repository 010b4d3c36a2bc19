"""The tensors of a GGUF file by their Hugging Face names, dequantized. The arithmetic of the blocks is the `gguf`
package's."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...checkpoint.families import FAMILIES
from ...errors import CheckpointError, UnsupportedError
from .reader import GgufFile, GgufTensor, gguf_package

CHUNK_ELEMENTS = 1 << 24  # dequantized at a time: 64 MiB of float32

# Tensor names within a layer, and at the top, to Hugging Face names.
LAYER_NAMES = {
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
# Of Phi-3, and of families with norms of outputs.
_FUSED_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_OUTPUT_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
NEIGHBORS = ("llama", "smollm3", "granite")
"""In these architectures RoPE rotates neighboring channels; in Hugging Face's, the two halves of a head."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: `rows` permutes the rows of `tensor` into Hugging Face's order (None: unchanged), and `offset`
    is subtracted from it."""

    name: str
    tensor: GgufTensor
    rows: npt.NDArray[np.int64] | None
    offset: float = 0.0


def plan_tensors(gguf: GgufFile, config: Mapping[str, Any]) -> list[PlannedTensor]:
    """All tensors of the model, after checking that none is missing, unexpected, or has another shape.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        UnsupportedError: there are unexpected tensors, or one has a quantization that cannot be dequantized.
    """
    plan = []
    left_over = set(gguf.tensors) - {ROPE_FREQS}
    if config["model_type"] == "phi3":
        left_over -= set(ROPE_FACTORS)
    for name, hf_name, shape in _expected_tensors(config):
        tensor = gguf.tensors.get(name)
        if tensor is None and name.endswith("attn_output.bias"):
            raise UnsupportedError(
                f"{gguf.source} has biases for q, k and v but not for the output; Hugging Face's "
                f"{config['model_type']} has all of them or none."
            )
        if tensor is None:
            raise CheckpointError(f"{gguf.source} has no tensor {name!r}; is the file truncated?")
        if tensor.shape != shape:
            raise CheckpointError(f"{gguf.source}: tensor {name!r} has shape {tensor.shape}, not {shape}.")
        left_over.remove(name)
        next(float_chunks(gguf, tensor, elements=1))  # refuses unknown quantizations before anything is written
        rows = None
        if gguf.metadata["general.architecture"] in NEIGHBORS and name.split(".")[-2] in ("attn_q", "attn_k"):
            pairs = np.arange(shape[0]).reshape(-1, config["head_dim"] // 2, 2)
            rows = pairs.swapaxes(1, 2).ravel()
        # llama.cpp's converter adds the offset to the weights of norms.
        offset = FAMILIES[config["model_type"]].norm_offset if hf_name.endswith("norm.weight") else 0.0
        plan.append(PlannedTensor(hf_name, tensor, rows, offset))
    if left_over:
        raise UnsupportedError(
            f"{gguf.source} holds {len(left_over)} tensors that a plain {config['model_type']} model does not have, "
            f"among them {min(left_over)!r}."
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
    names = LAYER_NAMES
    if config["model_type"] == "phi3":
        names = LAYER_NAMES | _FUSED_NAMES
        weights |= {"attn_qkv": (q + 2 * kv, hidden), "ffn_up": (2 * middle, hidden)}
        for part in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
            del weights[part]
    family = FAMILIES[config["model_type"]]
    if family.norms.attention_output is not None:
        names = LAYER_NAMES | _OUTPUT_NORMS
        if family.norms.mlp is not None:
            names |= {"ffn_norm": family.norms.mlp}
        weights |= dict.fromkeys(_OUTPUT_NORMS, (hidden,))
    if family.norms.attention is None:
        del weights["attn_norm"], weights["ffn_norm"]
    if family.qk_norm is not None:
        everything = family.qk_norm == "all"
        weights |= {"attn_q_norm": (q if everything else head_dim,), "attn_k_norm": (kv if everything else head_dim,)}
    biased = set(_ATTENTION[:3] if config["model_type"] == "qwen2" else ())
    biased |= set(_ATTENTION if config.get("attention_bias") else ())
    biased |= set(_MLP if config.get("mlp_bias") else ())
    for layer in range(config["num_hidden_layers"]):
        for name, shape in weights.items():
            hf_name = f"model.layers.{layer}.{names[name]}"
            yield f"blk.{layer}.{name}.weight", f"{hf_name}.weight", shape
            if name in biased:
                yield f"blk.{layer}.{name}.bias", f"{hf_name}.bias", shape[:1]
    yield "output_norm.weight", "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", "lm_head.weight", (config["vocab_size"], hidden)


def float_chunks(
    gguf: GgufFile, tensor: GgufTensor, rows: npt.NDArray[np.int64] | None = None, elements: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield the values of `tensor` in float32, in blocks of rows of about `elements` values (None: CHUNK_ELEMENTS).

    `rows` permutes the rows, or the elements of a vector.
    """
    package = gguf_package()
    packed = tensor.packed
    vector = len(tensor.shape) == 1
    step = max(1, (elements or CHUNK_ELEMENTS) // tensor.shape[-1])
    for start in range(0, packed.shape[0], step):
        end = min(start + step, packed.shape[0])
        chunk = packed[start:end] if rows is None or vector else packed[rows[start:end]]
        kind = package.GGMLQuantizationType(tensor.quantization)
        try:
            values = package.quants.dequantize(np.ascontiguousarray(chunk), kind)
        except NotImplementedError:
            # Whether the package supports a quantization shows only on trying; plan_tensors tries each of them first.
            raise UnsupportedError(
                f"{gguf.source}: tensor {tensor.name!r} is {kind.name}, which the package gguf cannot dequantize."
            ) from None
        values = np.array(values[:, rows] if rows is not None and vector else values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{gguf.source}: tensor {tensor.name!r} holds values that are not finite.")
        yield torch.from_numpy(values)


def read_tensor(gguf: GgufFile, planned: PlannedTensor, dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor in `dtype`.

    Raises:
        UnsupportedError: a value exceeds the range of `dtype`.
        CheckpointError: a value is not finite.
    """
    shape = planned.tensor.shape
    result = torch.empty(math.prod(shape), dtype=dtype)
    done = 0
    for chunk in float_chunks(gguf, planned.tensor, planned.rows):
        result[done : done + chunk.numel()] = (chunk.flatten() - planned.offset).to(dtype)
        done += chunk.numel()
    if not result.isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"{gguf.source}: tensor {planned.tensor.name!r} does not fit into {name}; use float32 or bfloat16."
        )
    return result.view(shape)
