"""Removes the multipliers of linears' inputs (ModelOpt's pre_quant_scale), which MindIE does not apply at run time.

Those of q, k, v and of gate, up are folded into the norm before them, that of down_proj into up_proj, and that of
o_proj into v_proj if the query heads of a key/value head have the same one. A linear whose multiplier cannot be folded
becomes float, with the multiplier in its weight.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...checkpoint.model_config import ModelConfig
from ...kernels.arrays import Floats, widen
from ...kernels.tables import DynamicTable, FloatTable, LinearTable, StaticTable

Tables = dict[str, LinearTable]
"""The linears of a layer by the last part of their names."""

READERS = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}


def fold_multipliers(
    config: ModelConfig, tables: Tables, norms: Mapping[str, Floats], scale_values: bool
) -> tuple[Tables, dict[str, Floats], list[str]]:
    """The linears of a layer without input multipliers, its norms' weights [hidden], and the names of the linears that
    became float.

    Args:
        norms: weights, float32 [hidden], by the names in READERS.
        scale_values: whether v_proj may be scaled; not if V has a calibrated table.
    """
    tables, folded = dict(tables), dict(norms)
    # The norms first: their readers may become float, with nothing left to fold.
    for norm, readers in READERS.items():
        multipliers = [_multiplier(tables[name]) for name in readers]
        first = multipliers[0]
        if first is not None and all(other is not None and np.array_equal(first, other) for other in multipliers):
            folded[norm] = folded[norm] * first
            for name in readers:
                tables[name] = _without_multiplier(tables[name])
    down = _multiplier(tables["down_proj"])
    if down is not None:
        tables["up_proj"] = _scaled(tables["up_proj"], down)
        tables["down_proj"] = _without_multiplier(tables["down_proj"])
    out = _multiplier(tables["o_proj"])
    if out is not None and scale_values:
        by_head = out.reshape(config.num_kv_heads, config.group_size, config.head_dim)
        if (by_head == by_head[:, :1]).all():
            tables["v_proj"] = _scaled(tables["v_proj"], by_head[:, 0].reshape(-1))
            tables["o_proj"] = _without_multiplier(tables["o_proj"])
    floats = [name for name, table in tables.items() if _multiplier(table) is not None]
    for name in floats:
        tables[name] = _as_float(tables[name])
    return tables, folded, floats


def _multiplier(table: LinearTable) -> Floats | None:
    return None if isinstance(table, FloatTable) else table.input_multiplier


def _without_multiplier(table: LinearTable) -> LinearTable:
    return table if isinstance(table, FloatTable) else replace(table, input_multiplier=None)


def _scaled(table: LinearTable, outputs: Floats) -> LinearTable:
    """The linear with its outputs multiplied by `outputs` [n]."""
    if isinstance(table, StaticTable):
        return replace(table, deq_scale=table.deq_scale * outputs)
    if isinstance(table, DynamicTable):
        return replace(table, scale=table.scale * outputs, bias=None if table.bias is None else table.bias * outputs)
    bias = None if table.bias is None else widen(table.bias) * outputs
    return FloatTable(widen(table.weight) * outputs[:, None], bias)


def _as_float(table: LinearTable) -> FloatTable:
    """The linear in float32, with its input multiplier in the weight."""
    if isinstance(table, FloatTable):
        return table
    multiplier = 1.0 if table.input_multiplier is None else table.input_multiplier
    if isinstance(table, DynamicTable):
        return FloatTable(table.weight * table.scale[:, None] * multiplier, table.bias)
    scale = table.deq_scale / table.input_scale
    zero = table.weight.sum(1, dtype=np.int64) * float(table.input_offset[0])
    bias = ((table.quant_bias + zero) * table.deq_scale).astype(np.float32)
    return FloatTable(table.weight * scale[:, None] * multiplier, bias if bias.any() else None)
