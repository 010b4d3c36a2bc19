"""The tensors of quantized linears by their msModelSlim names: checks, and conversion to plain tables."""

import numpy as np

from ...checkpoint.model_config import ModelConfig
from ...errors import CheckpointError, UnsupportedError
from ...kernels.arrays import Floats, Stored
from ...kernels.isa import MAX_DOT_LENGTH
from ...kernels.tables import INPUT_STEPS, DynamicTable, StaticTable
from ..checked import Checked
from ..faquant.metadata import ASYMMETRIC_TYPE, INPUT_STEPS_BY_TYPE, ROTATED_TYPES, SCALED_TYPE, WIDE_TYPE
from .description import Description


def static_table(
    checked: Checked, config: ModelConfig, name: str, signed: bool = False, scaled: bool = False
) -> StaticTable:
    """The table of a W8A8 linear.

    Args:
        signed: whether scales may be negative.
        scaled: whether the input is multiplied by pre_quant_scale.
    """
    n, k = config.linear_shape(name)
    return StaticTable(
        checked.get(f"{name}.weight", dtype="int8"),
        checked.positive(f"{name}.input_scale", (1,)),
        checked.floats(f"{name}.input_offset", (1,)),
        checked.get(f"{name}.quant_bias", (n,), "int32"),
        read_deq_scale(checked, name, n, signed),
        checked.floats(f"{name}.pre_quant_scale", (k,)) if scaled else None,
    )


def dynamic_table(
    checked: Checked,
    config: ModelConfig,
    name: str,
    kind: str,
    hadamard_block: int = 0,
    signed: bool = False,
    input_steps: float = INPUT_STEPS,
) -> DynamicTable:
    """The table of a linear of a type with a scale per token.

    Args:
        hadamard_block: of the input, if the type is a rotated one.
        signed: whether scales may be negative.
        input_steps: of types that do not determine it.
    """
    n, _ = config.linear_shape(name)
    # Outlier suppression adds biases that config.json does not know.
    bias = checked.floats(f"{name}.bias", (n,)) if config.has_bias(name) or f"{name}.bias" in checked else None
    scale = checked.scales(f"{name}.weight_scale", (n, 1), signed)[:, 0]
    return DynamicTable(
        checked.get(f"{name}.weight", dtype="int8"),
        np.ascontiguousarray(scale),
        bias,
        hadamard_block if kind in ROTATED_TYPES else 0,
        input_steps=INPUT_STEPS_BY_TYPE.get(kind, input_steps),
    )


_WEIGHT = ("weight", "weight_scale", "weight_offset")
_STATIC = (*_WEIGHT, "input_scale", "input_offset", "quant_bias", "deq_scale")
PARTS = {
    "W8A8": _STATIC,
    SCALED_TYPE: (*_STATIC, "pre_quant_scale"),
    # A bias may come from outlier suppression; a static linear has it in quant_bias.
    **dict.fromkeys(("W8A8_DYNAMIC", ASYMMETRIC_TYPE, WIDE_TYPE, *ROTATED_TYPES), (*_WEIGHT, "bias")),
}
"""The tensors of a quantized linear by its type."""


def check_attention_types(description: Description) -> None:
    for name, kind in description.tensor_types.items():
        if ".self_attn.fa_" in name and kind != "FAQuant":
            raise CheckpointError(f"{name} has type {kind} in the description, but must have type FAQuant.")


def check_linear(
    checked: Checked, config: ModelConfig, description: Description, name: str, signed: bool = False
) -> None:
    """Check that the small tensors of a quantized linear exist, have the right shapes and valid values, and agree."""
    kind = description.tensor_types[f"{name}.weight"]
    n, k = config.linear_shape(name)
    if k > MAX_DOT_LENGTH:
        raise UnsupportedError(f"{name} has {k} inputs; int32 sums are safe from overflow for up to {MAX_DOT_LENGTH}.")
    offset = f"{name}.weight_offset"
    if offset in checked and checked.get(offset, (n, 1)).any():
        raise CheckpointError(f"{offset} has values other than zero; weights must be quantized symmetrically.")
    weight_scale = f"{name}.weight_scale"
    static = kind in ("W8A8", SCALED_TYPE)
    if not static or weight_scale in checked:
        checked.scales(weight_scale, (n, 1), signed)
    if not static:
        return
    if kind == SCALED_TYPE:
        checked.floats(f"{name}.pre_quant_scale", (k,))
    deq_scale = read_deq_scale(checked, name, n, signed)
    input_scale = checked.positive(f"{name}.input_scale", (1,))
    input_offset = checked.floats(f"{name}.input_offset", (1,))
    if (np.rint(input_offset) != input_offset).any() or (input_offset < -128).any() or (input_offset > 127).any():
        raise CheckpointError(
            f"{name}.input_offset is {input_offset.item()}, but must be a whole number from -128 to 127."
        )
    if weight_scale in checked:
        expected = input_scale * checked.scales(weight_scale, (n, 1), signed)[:, 0]
        # They may differ by three roundings to bfloat16, and float16 may have become subnormal.
        if (np.abs(deq_scale - expected) > 0.02 * np.abs(expected) + 2.0**-23).any():
            raise CheckpointError(f"{name}.deq_scale is not input_scale · weight_scale. The file is damaged.")
    bias = checked.get(f"{name}.quant_bias", (n,), "int32")
    if (np.abs(bias.astype(np.int64)) > (1 << 31) - 1 - 128 * 127 * k).any():
        raise CheckpointError(f"{name}.quant_bias holds values that could overflow an int32 sum.")


def read_deq_scale(checked: Checked, name: str, n: int, signed: bool = False) -> Floats:
    """float32 deq_scale [n] of the static linear `name`, which may be stored as int64; `signed`: it may be negative.

    Raises:
        CheckpointError: it is missing, has another shape, or holds invalid scales.
    """
    deq_scale = unpack_deq_scale(checked.get(f"{name}.deq_scale", (n,)), f"{name}.deq_scale")
    checked.check_scales(f"{name}.deq_scale", deq_scale, signed)
    return deq_scale


def unpack_deq_scale(packed: Stored, name: str) -> Floats:
    """float32 scales from float32, or from int64 that holds the float32 bits (widened from int32).

    Raises:
        CheckpointError: the dtype is another one, or values exceed 32 bits.
    """
    if packed.dtype == np.float32:
        return packed
    if packed.dtype != np.int64:
        raise CheckpointError(f"{name} must be float32, or int64 that holds float32 bits, not {packed.dtype}.")
    if ((packed < -(1 << 31)) | (packed >= 1 << 32)).any():
        raise CheckpointError(f"{name} is int64, but its values are not float32 bits.")
    return (packed & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
