"""Exports checkpoints for compressed-tensors: W8A8 with a scale per token, and an int8 cache with a scale per head.

transformers computes both if the package compressed-tensors is installed. vLLM computes the first, and refuses int8
caches. A token's greatest input is 127.5 steps there (docs/other_tools.md).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ...checkpoint.shards import ShardWriter, write_json
from ...checkpoint.side_files import copy_side_files
from ...checkpoint.write import add_all, output_directory
from ...formats.base import QUANTIZATION_KEYS, Opened
from ...formats.compressed_tensors import OpenedCompressedTensors
from ...kernels.quantizers import tensor_of
from ...kernels.tables import DynamicTable
from ..convert import float_tensors, linear_tensors, open_quantized
from ..tensors import DTYPES, NamedTensor
from .common import (
    bias_obstacles,
    cache_obstacles,
    check_float16,
    has_zero_points,
    linear_obstacles,
    model_obstacles,
    refuse,
    symmetric_scale,
)

ENGINE = "compressed-tensors"
LEAST_FACTOR = 1e-3
"""Of a pair of K's channels, relative to the head's largest, so that q keeps its precision."""
KvCache: TypeAlias = Literal["int8", "none"]


def export_compressed_tensors(
    source: Path, target: Path, overwrite: bool = False, kv_cache: KvCache = "int8"
) -> list[str]:
    """Write `source` to `target` as compressed-tensors does.

    Args:
        kv_cache: `int8`: with the tables of K and V, one scale per head. `none`: the linears alone, for stock vLLM.

    Returns:
        Where the result's arithmetic differs from the source's, as sentences.

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: the format cannot express the source's arithmetic; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_quantized(source)
    reasons = linear_obstacles(opened, ENGINE) + bias_obstacles(opened)
    if kv_cache == "int8":
        reasons += cache_obstacles(opened.schemes, ENGINE)
    refuse(source, ENGINE, model_obstacles(opened, ENGINE), reasons, "portable")
    dtype = DTYPES[opened.config.dtype]
    rounded: set[str] = set()
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, "model") as writer:
            types = add_all(writer, _in_dtype(_weights(opened, dtype, kv_cache == "int8"), dtype, rounded))
            if kv_cache == "int8":
                add_all(writer, _in_dtype(_tables(opened), dtype, rounded))
        copy_side_files(source, directory)
        # Last, so that an incomplete directory is not mistaken for a model.
        write_json(directory / "config.json", _config(opened, types, kv_cache))
    return _notes(opened, kv_cache, rounded)


def _notes(opened: Opened, kv_cache: KvCache, rounded: set[str]) -> list[str]:
    notes = []
    if opened.input_steps != OpenedCompressedTensors.input_steps:
        notes.append(f"A token's greatest input is 127.5 steps there; the source has {opened.input_steps:g}.")
    if rounded:
        notes.append(f"Rounded to {opened.config.dtype}, the model's type: {', '.join(sorted(rounded))}.")
    if kv_cache == "none":
        if any(opened.schemes):
            notes.append("The tables of K, V and q are left out: the attention is float.")
        return notes
    present = [scheme for scheme in opened.schemes if scheme is not None]
    if any(scheme.q_scale is not None for scheme in present):
        notes.append("The calibrated scales of q are left out: only K and V are quantized there.")
    if any(table.shape[-1] > 1 for x in present for table in (x.k_scale, x.v_scale) if table is not None):
        folded = "" if opened.config.qk_norm else ", after factors for K's channel pairs that q_proj and k_proj contain"
        notes.append(f"A head has the greatest scale of its channels{folded}.")
    if has_zero_points(present):
        notes.append("The zero points of K and V are left out; their scales cover the same values without.")
    return notes


def _pair_factors(opened: Opened, layer: int) -> Tensor | None:
    """What K's channels are divided by and q's multiplied by, [Hkv, D], so that all pairs of a head reach equally far,
    since they share one scale. RoPE rotates the two channels of a pair, which thus need the same factor. None: a norm
    comes between the linears and RoPE, or there are no tables."""
    scheme = opened.schemes[layer]
    if scheme is None or scheme.k_scale is None or opened.config.qk_norm:
        return None
    heads, dim = opened.config.num_kv_heads, opened.config.head_dim
    reach = tensor_of(symmetric_scale(scheme.k_scale, scheme.k_offset)).expand(heads, dim).double()
    pairs = reach.view(heads, 2, dim // 2).amax(1)
    pairs = pairs / pairs.amax(-1, keepdim=True)
    return pairs.clamp_min(LEAST_FACTOR).repeat(1, 2)


def _output_factors(opened: Opened, name: str) -> Tensor | None:
    """What the outputs of the linear `name` are multiplied by, [n]; None: nothing."""
    kind = name.rpartition(".")[2]
    if kind not in ("q_proj", "k_proj"):
        return None
    factors = _pair_factors(opened, int(name.split(".")[2]))
    if factors is None:
        return None
    return (
        (1 / factors).flatten()
        if kind == "k_proj"
        else factors.repeat_interleave(opened.config.group_size, 0).flatten()
    )


def _scaled(part: str, tensor: Tensor, factors: Tensor) -> Tensor:
    """A tensor of a linear whose outputs are multiplied by `factors` [n]."""
    if part.endswith(".weight") and tensor.dtype == torch.int8:
        return tensor
    return (tensor.double() * (factors if tensor.ndim == 1 else factors[:, None])).float()


def _weights(opened: Opened, dtype: torch.dtype, fold: bool) -> Iterator[NamedTensor]:
    yield from float_tensors(opened)
    for name in opened.config.linears:
        if name == "lm_head" and "lm_head.weight" not in opened.files:
            continue
        table = opened.linear(name)
        factors = _output_factors(opened, name) if fold else None
        for part, kind, tensor in linear_tensors(table, name):
            if part.endswith(".weight_offset"):
                continue
            scaled = tensor if factors is None else _scaled(part, tensor, factors)
            if dtype == torch.float16 and part.endswith(".weight_scale") and isinstance(table, DynamicTable):
                check_float16(name, table.weight, scaled[:, 0].numpy(), ENGINE)
            yield part, kind, scaled


def _tables(opened: Opened) -> Iterator[NamedTensor]:
    for layer, scheme in enumerate(opened.schemes):
        if scheme is None or scheme.k_scale is None or scheme.v_scale is None:
            raise TypeError(f"layer {layer} has no calibrated scales of K and V")
        for part, scale, offset in (("k", scheme.k_scale, scheme.k_offset), ("v", scheme.v_scale, scheme.v_offset)):
            by_channel = tensor_of(symmetric_scale(scale, offset))
            factors = _pair_factors(opened, layer) if part == "k" else None
            by_head = (by_channel if factors is None else by_channel / factors).float().amax(-1).view(-1, 1, 1)
            yield f"model.layers.{layer}.self_attn.{part}_scale", "FLOAT", by_head


def _in_dtype(tensors: Iterable[NamedTensor], dtype: torch.dtype, rounded: set[str]) -> Iterator[NamedTensor]:
    """The tensors with floats in `dtype`; `rounded` gets what changes."""
    for name, kind, tensor in tensors:
        stored = tensor if tensor.dtype == torch.int8 else tensor.to(dtype)
        if not torch.equal(stored.to(tensor.dtype), tensor):
            kinds = {"scale": "scales", ".bias": "biases", "norm.weight": "norms"}
            rounded.add(next((word for end, word in kinds.items() if name.endswith(end)), "float weights"))
        yield name, kind, stored


def _config(opened: Opened, types: dict[str, str], kv_cache: KvCache) -> dict[str, Any]:
    raw = {key: value for key, value in opened.raw_config.items() if key not in (*QUANTIZATION_KEYS, "fa_quant_type")}
    weights = _arguments("channel")
    inputs = _arguments("token", dynamic=True)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    floats = [name for name in opened.config.linears if types.get(f"{name}.weight", "FLOAT") == "FLOAT"]
    raw["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": "int-quantized"}},
        "ignore": floats,
        "kv_cache_scheme": _arguments("attn_head") if kv_cache == "int8" else None,
    }
    return raw


def _arguments(strategy: str, dynamic: bool = False) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}
