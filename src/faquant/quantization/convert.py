"""Converts quantized checkpoints of any format: to faquant's own, and for MindIE, if their arithmetic allows it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model_config import LINEARS
from ..checkpoint.shards import ShardWriter, write_json
from ..checkpoint.side_files import copy_side_files
from ..checkpoint.write import add_all, output_directory
from ..errors import UnsupportedError, UsageError
from ..formats import open_checkpoint
from ..formats.base import LAYER_NORMS, QUANTIZATION_KEYS, Opened, norm_names
from ..formats.faquant.metadata import ROTATED_TYPE, SCALED_TYPE, Imported, Metadata
from ..formats.msmodelslim.description import C8_TYPE, FA_TYPE, Description
from ..formats.msmodelslim.format import OpenedMsModelSlim
from ..formats.msmodelslim.linears import unpack_deq_scale
from ..kernels.arrays import Floats, widen
from ..kernels.quantizers import tensor_of
from ..kernels.tables import DynamicTable, FloatTable, LinearTable, StaticTable
from .mindie.multipliers import fold_multipliers
from .mindie.w8a8 import pack_deq_scale
from .schemes import all_scheme_tensors
from .tensors import DTYPES, NamedTensor

MAX_HEAD_DIM = 256
"""MindIE's limit."""
STEMS = {
    "FLOAT": "quant_model_weights",
    "W8A8": "quant_model_weight_w8a8",
    "W8A8_DYNAMIC": "quant_model_weight_w8a8_dynamic",
}
"""msModelSlim's names of the file with the weights, by the type of the linears."""


def convert_to_faquant(source: Path, target: Path, overwrite: bool = False) -> None:
    """Write a checkpoint of another tool to `target` in faquant's format, with the same arithmetic.

    Raises:
        UsageError: the source is a float model, or has faquant's format.
        CheckpointError, UnsupportedError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = _open(source)
    if opened.metadata is not None:
        raise UsageError(f"{source} has faquant's format already.")
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, "quant_model_weight_w8a8") as writer:
            types = add_all(writer, weights(opened))
            types |= add_all(writer, all_scheme_tensors(opened.schemes))
        write_description(directory, opened, types, imported_metadata(opened))


def convert_to_mindie(source: Path, target: Path, overwrite: bool = False, manual: bool = False) -> None:
    """Write `source` to `target` with msModelSlim's file and tensor names and dtypes: FAQuant with scales of shape
    [heads, 1] if q has calibrated scales, otherwise a C8 cache with a scale per channel.

    Args:
        manual: name the tables of FAQuant as MindIE's manual, q_scale and so on, of shape [heads, head_dim].

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: the format cannot express the source's arithmetic; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = _open(source)
    reasons = _obstacles(opened, manual)
    if reasons:
        raise UnsupportedError(
            f"{source} cannot be converted for MindIE: {'; '.join(reasons)}. Quantize the float model with "
            "--recipe mindie instead."
        )
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, STEMS[opened.quant_type]) as writer:
            types = add_all(writer, _weights_for_mindie(opened))
            types |= add_all(writer, _tables_for_mindie(opened, manual))
        fa_type = FA_TYPE if FA_TYPE in types.values() else None
        c8_type = C8_TYPE if C8_TYPE in types.values() else None
        extra = {} if c8_type is None else {"kv_quant_type": c8_type}
        _write(directory, opened, Description("1.0.0", opened.quant_type, fa_type, c8_type, {}, types, extra))


def _open(source: Path) -> Opened:
    opened = open_checkpoint(source)
    if opened.is_float:
        raise UsageError(f"{source} is a float model. Quantize it with faquant quantize.")
    return opened


def imported_metadata(opened: Opened) -> Metadata:
    """The metadata of the opened checkpoint if all of its tables are kept."""
    if opened.metadata is not None:
        return opened.metadata
    present = [scheme for scheme in opened.schemes if scheme is not None]
    imported = Imported(
        format=opened.format,
        p="int8" if any(scheme.p_float16 for scheme in present) else "int16",
        input_steps=opened.input_steps,
    )
    return Metadata(imported=imported, max_position=opened.max_position)


def write_description(directory: Path, opened: Opened, types: dict[str, str], metadata: Metadata) -> None:
    """Write the files beside the tensors of a checkpoint in faquant's format."""
    fa_type = FA_TYPE if FA_TYPE in types.values() else None
    described = {"faquant": metadata.model_dump()}
    _write(directory, opened, Description("1.0.0", opened.quant_type, fa_type, None, described, types))


def _write(directory: Path, opened: Opened, description: Description) -> None:
    write_json(directory / "quant_model_description.json", description.to_json())
    copy_side_files(opened.directory, directory)
    raw = without_quantization(opened.raw_config)
    if "lm_head.weight" in description.tensor_types and "lm_head.weight" not in opened.files:
        raw["tie_word_embeddings"] = False
    # Last, so that an incomplete directory is not mistaken for a model.
    write_json(directory / "config.json", raw)


def without_quantization(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json without another tool's description of its quantization."""
    return {key: value for key, value in raw_config.items() if key not in QUANTIZATION_KEYS}


def weights(opened: Opened) -> Iterator[NamedTensor]:
    """All tensors of the opened checkpoint but the tables of its attention, by the names of faquant's format."""
    if isinstance(opened, OpenedMsModelSlim):
        for name, kind in opened.types.tensor_types.items():
            if kind not in (FA_TYPE, C8_TYPE) and not _is_norm_copy(name):
                yield name, kind, tensor_of(opened.files.read(name))
        return
    yield from _floats(opened)
    for name in opened.config.linears:
        if name != "lm_head" or "lm_head.weight" in opened.files:
            yield from _linear(opened.linear(name), name)


def _is_norm_copy(name: str) -> bool:
    return name.endswith((".module.weight", ".module.bias"))


def _floats(opened: Opened) -> Iterator[NamedTensor]:
    """Embedding and norms, as stored."""
    names = ["model.embed_tokens.weight", *(f"{norm}.weight" for norm in norm_names(opened.config))]
    if opened.config.qk_norm:
        layers = range(opened.config.num_layers)
        names += [f"model.layers.{layer}.self_attn.{norm}.weight" for layer in layers for norm in ("q_norm", "k_norm")]
    for name in names:
        yield name, "FLOAT", tensor_of(opened.files.read(name))


def _linear(table: LinearTable, name: str) -> Iterator[NamedTensor]:
    """The tensors of one linear."""
    if isinstance(table, FloatTable):
        yield f"{name}.weight", "FLOAT", tensor_of(table.weight)
        if table.bias is not None:
            yield f"{name}.bias", "FLOAT", tensor_of(table.bias)
        return
    multiplier = table.input_multiplier
    if isinstance(table, DynamicTable):
        scale = tensor_of(table.scale)[:, None]
        yield f"{name}.weight", "W8A8_DYNAMIC", tensor_of(table.weight)
        yield f"{name}.weight_scale", "W8A8_DYNAMIC", scale
        yield f"{name}.weight_offset", "W8A8_DYNAMIC", torch.zeros_like(scale)
        if table.bias is not None:
            yield f"{name}.bias", "FLOAT", tensor_of(table.bias)
        return
    kind = "W8A8" if multiplier is None else SCALED_TYPE
    yield f"{name}.weight", kind, tensor_of(table.weight)
    if multiplier is not None:
        yield f"{name}.pre_quant_scale", kind, tensor_of(multiplier)
    for part in ("input_scale", "input_offset", "quant_bias", "deq_scale"):
        yield f"{name}.{part}", kind, tensor_of(getattr(table, part))


def _obstacles(opened: Opened, manual: bool) -> list[str]:
    """The reasons why MindIE cannot load the checkpoint."""
    reasons = []
    config, present = opened.config, [scheme for scheme in opened.schemes if scheme is not None]
    kinds = {opened.linear_type(name) for name in config.linears}
    static_q = bool(present) and all(scheme.q_scale is not None for scheme in present)
    if ROTATED_TYPE in kinds:
        reasons.append("its linears' inputs are rotated at run time, which MindIE does not support")
    elif "W8A8_DYNAMIC" in kinds and static_q:
        reasons.append("its linears have a scale per token (W8A8_DYNAMIC), and MindIE supports FAQuant only with W8A8")
    floats = [layer for layer, scheme in enumerate(opened.schemes) if scheme is None]
    if floats and (present or manual):
        reasons.append(f"layer {floats[0]} has float attention, and MindIE needs quantized attention in every layer")
    if any(scheme.k_scale is None or scheme.v_scale is None for scheme in present):
        reasons.append("K or V has a scale per token, which MindIE's cache cannot store")
    if any(
        scheme.k_center is not None
        or scheme.k_equalizer is not None
        or scheme.rotation_block
        or scheme.v_rotation_block
        for scheme in present
    ):
        reasons.append("K or V is centered, equalized or rotated at run time")
    if manual and not static_q:
        reasons.append("q has no calibrated scale")
    if static_q:
        if not manual and any(_per_channel(table) for s in present for table in (s.q_scale, s.k_scale, s.v_scale)):
            reasons.append("q, K or V has a scale per channel, and MindIE's tables are [heads, 1]")
        if any(scheme.k_offset is not None or scheme.v_offset is not None for scheme in present):
            reasons.append("K or V has zero points")
    if config.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {config.head_dim}, and MindIE's limit is {MAX_HEAD_DIM}")
    return reasons


def _per_channel(table: Floats | None) -> bool:
    return table is not None and table.shape[-1] > 1


def _weights_for_mindie(opened: Opened) -> Iterator[NamedTensor]:
    """All tensors but the tables of attention, in msModelSlim's dtypes."""
    dtype = DTYPES[opened.config.dtype]
    quantized = {name for name in opened.config.linears if opened.linear_type(name) == "W8A8"}
    if not isinstance(opened, OpenedMsModelSlim) or SCALED_TYPE in map(opened.linear_type, opened.config.linears):
        yield from _from_tables(opened, dtype)
        return
    for name, kind, tensor in weights(opened):
        module, _, leaf = name.rpartition(".")
        if module in quantized and leaf == "deq_scale":
            tensor = pack_deq_scale(torch.from_numpy(unpack_deq_scale(tensor.numpy(), name)), dtype)
        elif module in quantized and leaf in ("input_scale", "input_offset", "weight_scale", "weight_offset"):
            tensor = _narrowed(tensor, dtype)
        yield name, kind, tensor


def _from_tables(opened: Opened, dtype: torch.dtype) -> Iterator[NamedTensor]:
    """All tensors but the tables of attention, from the linears' tables, without multipliers of inputs."""
    floats = {name: tensor for name, _, tensor in _floats(opened)}
    for layer in range(opened.config.num_layers):
        prefix = f"model.layers.{layer}."
        names = {name.rpartition(".")[2]: prefix + name for name in LINEARS}
        norms = {norm: widen(opened.tensor(f"{prefix}{norm}.weight")) for norm in LAYER_NORMS}
        tables, folded, _ = fold_multipliers(
            opened.config,
            {name: opened.linear(full) for name, full in names.items()},
            norms,
            scale_values=opened.schemes[layer] is None,
        )
        for norm, weight in folded.items():
            if weight is not norms[norm]:
                floats[f"{prefix}{norm}.weight"] = torch.from_numpy(weight).to(dtype)
        for name, table in tables.items():
            yield from _positive_linear(table, names[name], dtype)
    if "lm_head.weight" in opened.files:
        yield from _positive_linear(opened.linear("lm_head"), "lm_head", dtype)
    for name, tensor in floats.items():
        yield name, "FLOAT", tensor


def _positive_linear(table: LinearTable, name: str, dtype: torch.dtype) -> Iterator[NamedTensor]:
    for part, kind, tensor in _linear(_with_positive_scales(table, name), name):
        if part.endswith(".deq_scale"):
            tensor = pack_deq_scale(tensor, dtype)
        elif kind == "FLOAT" and isinstance(table, FloatTable):
            tensor = tensor.to(dtype)
        yield part, kind, tensor


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, as msModelSlim stores it, if no value changes; its newer writer stores float32."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _with_positive_scales(table: LinearTable, name: str) -> LinearTable:
    """The same linear; where the scale of an output is negative, the signs of scale, weights and bias are changed.

    Raises:
        UnsupportedError: such an output has the weight -128, which has no opposite in int8.
    """
    if isinstance(table, FloatTable):
        return table
    scale = table.deq_scale if isinstance(table, StaticTable) else table.scale
    negative = scale < 0
    if not negative.any():
        return table
    weight = np.array(table.weight)
    if (weight[negative] == -128).any():
        raise UnsupportedError(
            f"{name} cannot be converted for MindIE: it has negative scales, in rows with the weight -128, which has "
            "no opposite in int8."
        )
    weight[negative] *= -1
    if isinstance(table, StaticTable):
        bias = np.where(negative, -table.quant_bias, table.quant_bias)
        return replace(table, weight=weight, deq_scale=np.abs(scale), quant_bias=bias)
    return replace(table, weight=weight, scale=np.abs(scale))


def _tables_for_mindie(opened: Opened, manual: bool) -> Iterator[NamedTensor]:
    dtype, dim = DTYPES[opened.config.dtype], opened.config.head_dim
    for layer, scheme in enumerate(opened.schemes):
        if scheme is None:
            continue
        prefix = f"model.layers.{layer}.self_attn."
        tables = {"q": scheme.q_scale, "k": scheme.k_scale, "v": scheme.v_scale}
        offsets = {"q": None, "k": scheme.k_offset, "v": scheme.v_offset}
        for part, table in tables.items():
            if table is None:
                continue
            scale = tensor_of(table).to(dtype)
            if scheme.q_scale is None:
                heads = scale.expand(-1, dim).flatten()
                shift = offsets[part]
                offset = torch.zeros(len(table), 1) if shift is None else torch.as_tensor(shift)
                yield f"{prefix}{part}_proj.kv_cache_scale", C8_TYPE, heads
                yield f"{prefix}{part}_proj.kv_cache_offset", C8_TYPE, offset.expand(-1, dim).flatten().to(dtype)
            elif manual:
                scale = scale.expand(-1, dim)
                yield f"{prefix}{part}_scale", FA_TYPE, scale
                yield f"{prefix}{part}_offset", FA_TYPE, torch.zeros_like(scale)
            else:
                yield f"{prefix}fa_{part}.scale", FA_TYPE, scale
                yield f"{prefix}fa_{part}.offset", FA_TYPE, torch.zeros_like(scale, dtype=torch.int8)
