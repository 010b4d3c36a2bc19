"""Exports checkpoints for the model builder of onnxruntime-genai: a float directory with everything that is folded into
the weights, and scale files for an int8 cache.

The builder (0.18.0) multiplies scales by qmax / 128, and its kernel computes x8 = clamp(round(x / scale), -128, 127).
So a file with qmax 128 gives the scales as they are, and the greatest values are 127 steps.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint.shards import ShardWriter, write_json
from ...checkpoint.side_files import copy_side_files
from ...checkpoint.write import add_all, output_directory
from ...formats.base import QUANTIZATION_KEYS, Opened
from ...kernels.quantizers import tensor_of
from ...kernels.tables import DynamicTable, FloatTable
from ..convert import float_tensors, open_quantized
from ..tensors import DTYPES, NamedTensor
from .common import (
    bias_obstacles,
    cache_obstacles,
    has_zero_points,
    linear_obstacles,
    model_obstacles,
    refuse,
    symmetric_scale,
)

ENGINE = "onnxruntime-genai"
PER_CHANNEL, PER_TENSOR = "kv_cache_scales_per_channel.json", "kv_cache_scales_per_tensor.json"
QMAX = 128
"""Of int8 in the builder: scales of files with this qmax are not changed."""


def export_ort_genai(source: Path, target: Path, overwrite: bool = False) -> list[str]:
    """Write `source` to `target` as input of the model builder: float weights, and one scale file for each of its
    schemes int8_per_channel and int8_per_tensor.

    Returns:
        What the directory leaves out, as sentences, and the builder's options.

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: the builder cannot express the source's arithmetic; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_quantized(source)
    reasons = bias_obstacles(opened) + cache_obstacles(opened.schemes, ENGINE)
    if not opened.has_float_linears:
        reasons += linear_obstacles(opened, ENGINE)
    refuse(source, ENGINE, model_obstacles(opened, ENGINE), reasons, "portable")
    dtype = DTYPES[opened.config.dtype]
    needed = dtype.itemsize * opened.files.total_bytes
    with output_directory(target, overwrite, needed, keep=source) as directory:
        with ShardWriter(directory, "model") as writer:
            add_all(writer, _weights(opened, dtype))
        write_json(directory / PER_CHANNEL, _scales(opened, lambda scale: scale.flatten().tolist()))
        write_json(directory / PER_TENSOR, _scales(opened, lambda scale: float(scale.max())))
        copy_side_files(source, directory)
        raw = {k: v for k, v in opened.raw_config.items() if k not in (*QUANTIZATION_KEYS, "fa_quant_type")}
        # Last, so that an incomplete directory is not mistaken for a model.
        write_json(directory / "config.json", raw)
    notes = ["Linears are float there: the builder quantizes weights itself."]
    if has_zero_points(opened.schemes):
        notes.append("The zero points of K and V are left out; their scales cover the same values without.")
    if any(scheme is not None and scheme.q_scale is not None for scheme in opened.schemes):
        notes.append("The calibrated scales of q are left out: only K and V are quantized there.")
    notes.append(
        "Options of the builder: kv_cache_quant_scheme=int8_per_channel "
        f"kv_cache_scale_file={target / PER_CHANNEL}, or int8_per_tensor with {PER_TENSOR}."
    )
    return notes


def _weights(opened: Opened, dtype: torch.dtype) -> Iterator[NamedTensor]:
    for name, kind, tensor in float_tensors(opened):
        yield name, kind, tensor.to(dtype)
    for name in opened.config.linears:
        if name == "lm_head" and "lm_head.weight" not in opened.files:
            continue
        table = opened.linear(name)
        if isinstance(table, FloatTable):
            weight = tensor_of(table.weight)
        elif isinstance(table, DynamicTable) and table.input_multiplier is None:
            weight = tensor_of(table.weight) * tensor_of(table.scale)[:, None]
        else:
            raise TypeError(f"{name} cannot be exported: its inputs are transformed")
        yield f"{name}.weight", "FLOAT", weight.to(dtype)
        if table.bias is not None:
            yield f"{name}.bias", "FLOAT", tensor_of(table.bias).to(dtype)


def _scales(opened: Opened, entry: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The content of a scale file; `entry` makes a layer's entry from its scales [Hkv, D]."""
    found: dict[str, list[Any]] = {"k_scales": [], "v_scales": []}
    shape = opened.config.num_kv_heads, opened.config.head_dim
    for layer, scheme in enumerate(opened.schemes):
        if scheme is None or scheme.k_scale is None or scheme.v_scale is None:
            raise TypeError(f"layer {layer} has no calibrated scales of K and V")
        for part, scale, offset in (("k", scheme.k_scale, scheme.k_offset), ("v", scheme.v_scale, scheme.v_offset)):
            found[f"{part}_scales"].append(entry(tensor_of(symmetric_scale(scale, offset)).expand(shape)))
    return {"scales": found, "qmax": QMAX}
