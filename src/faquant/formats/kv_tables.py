"""Static tables of K and V as quantizers store them, and the attention schemes that use them."""

from typing import NamedTuple

import numpy as np

from ..checkpoint.model_config import ModelConfig
from ..errors import CheckpointError, UnsupportedError
from ..kernels.arrays import Floats
from ..kernels.scheme import P_LEVELS, AttentionScheme
from .checked import Checked

MAX_OFFSET = 255
"""Zero points beyond this many steps are useless in int8."""


class StaticTable(NamedTuple):
    """The calibrated scale of q, K or V after RoPE and its zero point in steps, float32 [heads, 1] or [heads, D]."""

    scale: Floats
    offset: Floats | None = None


def read_table(checked: Checked, scale: str, offset: str | None, heads: int, dim: int) -> StaticTable:
    """The tensors `scale` and `offset` (None: there are no zero points): one value, or one per head or per channel, in
    any of the shapes that quantizers write: [], [1], [heads], [heads, 1], [heads, 1, 1], [heads · D], [heads, D].

    Raises:
        CheckpointError: they have another shape, or their values are invalid.
    """
    values = checked.positive(scale, checked.files.shape(scale))
    table = compact(_by_head(scale, values, heads, dim))
    if offset is None:
        return StaticTable(table)
    return StaticTable(table, zero_points(offset, _by_head(offset, checked.floats(offset), heads, dim)))


def zero_points(name: str, offset: Floats) -> Floats | None:
    """`offset` after checking its values, or None if it is zero everywhere.

    Raises:
        CheckpointError: a zero point is out of range or not a whole number.
    """
    if (np.abs(offset) > MAX_OFFSET).any():
        raise CheckpointError(f"{name} holds a zero point beyond ±{MAX_OFFSET} steps, which is useless in int8.")
    if (np.rint(offset) != offset).any():
        raise CheckpointError(f"{name} holds a zero point that is not a whole number of steps.")
    return compact(offset) if offset.any() else None


def compact(table: Floats) -> Floats:
    """[heads, 1] if each head has one value, which some tools repeat over its channels."""
    return np.ascontiguousarray(table[:, :1]) if (table == table[:, :1]).all() else table


def _by_head(name: str, values: Floats, heads: int, dim: int) -> Floats:
    """[heads, 1] or [heads, D]."""
    if values.size == 1:
        return np.full((heads, 1), values.item(), np.float32)
    if values.shape in ((heads,), (heads, 1), (heads, 1, 1)):
        return values.reshape(heads, 1)
    if values.shape in ((heads * dim,), (heads, dim)):
        return values.reshape(heads, dim)
    raise CheckpointError(
        f"{name} has shape {list(values.shape)}, but must hold one value, one for each of {heads} heads, or one for "
        f"each of their {dim} channels."
    )


def scheme_of(
    config: ModelConfig,
    k: StaticTable | None,
    v: StaticTable | None,
    q: StaticTable | None = None,
    *,
    p: str = "int16",
) -> AttentionScheme:
    """The scheme of a layer; None: a scale per token and head. P's type is one of P_LEVELS.

    Raises:
        UnsupportedError: a scale of q or K has another unit here, where both have a factor on the scores.
    """
    if config.score_factor != 1.0 and not (q is None and k is None):
        raise UnsupportedError(
            f"Calibrated scales of q and K are not supported for {config.model_type}, whose scores have a factor; "
            "scales per token are."
        )
    return AttentionScheme(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        q_scale=None if q is None else q.scale,
        k_scale=None if k is None else k.scale,
        k_offset=None if k is None else k.offset,
        v_scale=None if v is None else v.scale,
        v_offset=None if v is None else v.offset,
        p_levels=P_LEVELS[p],
        p_float16=p == "int8",
        quantized_sum=v is not None and p != "int8",
    )
