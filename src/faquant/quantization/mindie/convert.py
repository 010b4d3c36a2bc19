"""Converts quantized checkpoints of any format for MindIE, if their arithmetic allows it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...checkpoint.families import PLAIN
from ...checkpoint.model_config import LINEARS, ModelConfig
from ...checkpoint.shards import ShardWriter
from ...checkpoint.write import add_all, output_directory
from ...errors import UnsupportedError
from ...formats.base import Opened
from ...formats.faquant.metadata import ASYMMETRIC_TYPES, ROTATED_TYPES, WIDE_TYPES
from ...formats.msmodelslim.description import C8_TYPE, FA_TYPE, Description
from ...formats.msmodelslim.format import OpenedMsModelSlim
from ...formats.msmodelslim.linears import unpack_deq_scale
from ...kernels.arrays import Array, widen
from ...kernels.quantizers import tensor_of
from ...kernels.scheme import AttentionScheme
from ...kernels.tables import INPUT_STEPS, FloatTable, LinearTable, StaticTable
from ..convert import float_tensors, linear_tensors, open_quantized, weights, write_beside
from ..exports.common import is_mapped, refuse
from ..tensors import DTYPES, NamedTensor
from .multipliers import READERS, fold_multipliers
from .w8a8 import pack_deq_scale

MAX_HEAD_DIM = 256
"""MindIE's limit."""
Tables: TypeAlias = Literal["any", "manual", "c8"]
"""`any`: FAQuant with scales of shape [heads, 1] if q has calibrated scales, otherwise a C8 cache with a scale per
channel. `manual`: FAQuant's by the names of MindIE's manual, q_scale and so on, of shape [heads, head_dim]. `c8`: a C8
cache, which leaves q float."""
STEMS = {
    "FLOAT": "quant_model_weights",
    "W8A8": "quant_model_weight_w8a8",
    "W8A8_DYNAMIC": "quant_model_weight_w8a8_dynamic",
}
"""msModelSlim's names of the file with the weights, by the type of the linears."""


def convert_to_mindie(source: Path, target: Path, overwrite: bool = False, tables: Tables = "any") -> list[str]:
    """Write `source` to `target` with msModelSlim's file and tensor names and dtypes.

    Returns:
        Where the result's arithmetic differs from the source's, as sentences.

    Raises:
        UsageError: the source is a float model.
        UnsupportedError: the format cannot express the source's arithmetic; the error lists all reasons.
        CheckpointError: the source cannot be read.
        OutputError: the target cannot be written.
    """
    opened = open_quantized(source)
    recipe = "portable" if tables == "c8" else "mindie"
    refuse(source, "MindIE", _model_obstacles(opened.config), _obstacles(opened, tables), recipe)
    conversion = _Conversion(opened, tables)
    with output_directory(target, overwrite, opened.files.total_bytes, keep=source) as directory:
        with ShardWriter(directory, STEMS[opened.quant_type]) as writer:
            types = add_all(writer, conversion.weights())
            types |= add_all(writer, conversion.tables())
        fa_type, c8_type = (kind if kind in types.values() else None for kind in (FA_TYPE, C8_TYPE))
        extra = {} if c8_type is None else {"kv_quant_type": c8_type}
        write_beside(directory, opened, Description("1.0.0", opened.quant_type, fa_type, c8_type, {}, types, extra))
    return conversion.notes


def _obstacles(opened: Opened, tables: Tables) -> list[str]:
    """The reasons why MindIE cannot load the checkpoint that do not lie in the model."""
    reasons = []
    present = [scheme for scheme in opened.schemes if scheme is not None]
    kinds = {opened.linear_type(name) for name in opened.config.linears}
    static_q = tables != "c8" and bool(present) and all(scheme.q_scale is not None for scheme in present)
    if tables == "c8" and not present:
        reasons.append("its attention is float, so there are no tables of K and V")
    if tables != "c8" and not static_q and any(scheme.q_scale is not None for scheme in present):
        reasons.append("q has calibrated scales in some layers only, and MindIE's cache has one kind")
    if kinds.intersection(WIDE_TYPES):
        reasons.append("its linears' inputs have 16 bits, and MindIE's have 8")
    if kinds.intersection(ASYMMETRIC_TYPES):
        reasons.append(
            "its linears' inputs have zero points per token (but not with the recipe's linear.activation 'token')"
        )
    if kinds.intersection(ROTATED_TYPES):
        reasons.append("its linears' inputs are rotated at run time, which MindIE does not support")
    elif "W8A8_DYNAMIC" in kinds and static_q:
        reasons.append("its linears have a scale per token (W8A8_DYNAMIC), and MindIE supports FAQuant only with W8A8")
    floats = [layer for layer, scheme in enumerate(opened.schemes) if scheme is None]
    if floats and (present or tables == "manual"):
        reasons.append(f"layer {floats[0]} has float attention, and MindIE needs quantized attention in every layer")
    if any(scheme.k_scale is None or scheme.v_scale is None for scheme in present):
        reasons.append("K or V has a scale per token, which MindIE's cache cannot store")
    if any(map(is_mapped, present)):
        reasons.append("K or V is centered, equalized or rotated at run time")
    if tables == "manual" and not static_q:
        reasons.append("q has no calibrated scale")
    if static_q:
        if tables == "any" and any(_is_per_channel(scheme) for scheme in present):
            reasons.append("q, K or V has a scale per channel, and MindIE's tables are [heads, 1]")
        if any(scheme.k_offset is not None or scheme.v_offset is not None for scheme in present):
            reasons.append("K or V has zero points")
    return reasons


def _model_obstacles(config: ModelConfig) -> list[str]:
    """The reasons why MindIE cannot load any checkpoint of the model."""
    reasons = []
    if config.model_type not in PLAIN:
        reasons.append(f"faquant writes MindIE's format for {', '.join(PLAIN)}, not for {config.model_type}")
    if config.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {config.head_dim}, and MindIE's limit is {MAX_HEAD_DIM}")
    return reasons


def _is_per_channel(scheme: AttentionScheme) -> bool:
    tables = scheme.q_scale, scheme.k_scale, scheme.v_scale
    return any(table is not None and table.shape[-1] > 1 for table in tables)


class _Conversion:
    """The tensors of a checkpoint for MindIE, and notes about changed arithmetic."""

    def __init__(self, opened: Opened, tables: Tables) -> None:
        self.opened, self._tables = opened, tables
        self.dtype = DTYPES[opened.config.dtype]
        self.notes: list[str] = []

    def weights(self) -> Iterator[NamedTensor]:
        """All tensors but the tables of attention."""
        opened = self.opened
        if isinstance(opened, OpenedMsModelSlim) and not (opened.metadata and opened.metadata.imported):
            yield from self._stored_weights()
            return
        if opened.input_steps != INPUT_STEPS and "W8A8_DYNAMIC" in map(opened.linear_type, opened.config.linears):
            self._note(f"A token's greatest input is 127 steps in MindIE; the source has {opened.input_steps}.")
        floats = {name: tensor for name, _, tensor in float_tensors(opened)}
        for layer in range(opened.config.num_layers):
            tables, norms = self._without_multipliers(layer)
            floats |= norms
            for name, table in tables.items():
                yield from self._linear(table, name)
        if "lm_head.weight" in opened.files:
            yield from self._linear(opened.linear("lm_head"), "lm_head")
        for name, tensor in floats.items():
            yield name, "FLOAT", tensor

    def tables(self) -> Iterator[NamedTensor]:
        """The tables of attention. Scales are in the model's dtype; with msModelSlim's names, in float32 if that would
        change them."""
        for layer, scheme in enumerate(self.opened.schemes):
            if scheme is None:
                continue
            prefix = f"model.layers.{layer}.self_attn."
            is_c8 = scheme.q_scale is None or self._tables == "c8"
            if is_c8 and scheme.q_scale is not None:
                self._note("The calibrated scales of q are left out: with a C8 cache, q is not quantized.")
            for part, table in (("q", scheme.q_scale), ("k", scheme.k_scale), ("v", scheme.v_scale)):
                if table is None or (is_c8 and part == "q"):
                    continue
                if is_c8:
                    offset = scheme.k_offset if part == "k" else scheme.v_offset
                    yield from self._c8_tables(f"{prefix}{part}_proj.kv_cache_", table, offset)
                elif self._tables == "manual":
                    scale = self._by_channel(tensor_of(table).to(self.dtype))
                    if not torch.equal(scale.to(torch.float32), self._by_channel(tensor_of(table))):
                        self._note(f"Scales were rounded to {self.opened.config.dtype}, as the manual's tables are.")
                    yield f"{prefix}{part}_scale", FA_TYPE, scale
                    yield f"{prefix}{part}_offset", FA_TYPE, torch.zeros_like(scale)
                else:
                    scale = _narrowed(tensor_of(table), self.dtype)
                    yield f"{prefix}fa_{part}.scale", FA_TYPE, scale
                    yield f"{prefix}fa_{part}.offset", FA_TYPE, torch.zeros_like(scale, dtype=torch.int8)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _c8_tables(self, prefix: str, scale: Array, offset: Array | None) -> Iterator[NamedTensor]:
        table = _narrowed(self._by_channel(tensor_of(scale)).flatten(), self.dtype)
        shift = torch.zeros(len(table)) if offset is None else self._by_channel(tensor_of(offset)).flatten()
        yield f"{prefix}scale", C8_TYPE, table
        yield f"{prefix}offset", C8_TYPE, shift.to(table.dtype)

    def _by_channel(self, table: Tensor) -> Tensor:
        return table.expand(-1, self.opened.config.head_dim)

    def _stored_weights(self) -> Iterator[NamedTensor]:
        """Of a checkpoint in msModelSlim's format, with its newer or older dtypes."""
        quantized = {name for name in self.opened.config.linears if self.opened.linear_type(name) == "W8A8"}
        for name, kind, tensor in weights(self.opened):
            module, _, leaf = name.rpartition(".")
            if module in quantized and leaf == "deq_scale":
                tensor = pack_deq_scale(torch.from_numpy(unpack_deq_scale(tensor.numpy(), name)), self.dtype)
            elif module in quantized and leaf in ("input_scale", "input_offset", "weight_scale", "weight_offset"):
                tensor = _narrowed(tensor, self.dtype)
            yield name, kind, tensor

    def _without_multipliers(self, layer: int) -> tuple[dict[str, LinearTable], dict[str, Tensor]]:
        """The linears of a layer by their names, and the norms that changed."""
        opened, prefix = self.opened, f"model.layers.{layer}."
        names = {name.rpartition(".")[2]: prefix + name for name in LINEARS}
        norms = {norm: widen(opened.tensor(f"{prefix}{norm}.weight")) for norm in READERS}
        linears = {name: opened.linear(full) for name, full in names.items()}
        scale_values = opened.schemes[layer] is None
        tables, folded, became_float = fold_multipliers(opened.config, linears, norms, scale_values)
        if became_float:
            self._note(f"{', '.join(became_float)} became float, since its inputs are multiplied (pre_quant_scale).")
        changed = {
            f"{prefix}{norm}.weight": _narrowed(torch.from_numpy(weight), self.dtype)
            for norm, weight in folded.items()
            if weight is not norms[norm]
        }
        return {names[name]: table for name, table in tables.items()}, changed

    def _linear(self, table: LinearTable, name: str) -> Iterator[NamedTensor]:
        for part, kind, tensor in linear_tensors(_with_positive_scales(table, name), name):
            if part.endswith(".deq_scale"):
                tensor = pack_deq_scale(tensor, self.dtype)
            elif isinstance(table, FloatTable):
                tensor = tensor.to(self.dtype)
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
