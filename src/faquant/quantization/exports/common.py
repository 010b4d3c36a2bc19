"""What exports to other engines share: what stands in the way, and tables that are less fine than ours."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...checkpoint.families import PLAIN
from ...errors import UnsupportedError
from ...formats.base import Opened, norm_names
from ...formats.faquant.metadata import ASYMMETRIC_TYPES, ROTATED_TYPES, WIDE_TYPES
from ...kernels.arrays import Array, Floats
from ...kernels.scheme import AttentionScheme

_HALF_ERROR = 2.0**-8
"""The relative error that float16 may add to a scale: half a step of the greatest weight, as rounding did before.
Below 2⁻¹⁷ float16 has greater ones, and below 2⁻²⁵ it is 0."""


def refuse(source: Path, engine: str, of_model: Sequence[str], of_recipe: Sequence[str], recipe: str) -> None:
    """Refuse a source for reasons that lie in the model, and for some that `recipe` would avoid.

    Raises:
        UnsupportedError: there is a reason; the error lists all.
    """
    if not of_model and not of_recipe:
        return
    advice = f"Quantize the float model with --recipe {recipe} instead."
    if of_model:
        advice = "The model itself is a reason, so no recipe helps."
    raise UnsupportedError(f"{source} cannot be converted for {engine}: {'; '.join([*of_model, *of_recipe])}. {advice}")


def model_obstacles(opened: Opened, engine: str) -> list[str]:
    """The reason why faquant does not write models of this family for the engine, if there is one."""
    if opened.config.model_type in PLAIN:
        return []
    return [f"faquant exports {', '.join(PLAIN)} models to {engine}, not {opened.config.model_type}"]


def linear_obstacles(opened: Opened, engine: str) -> list[str]:
    """The reasons why the linears cannot be W8A8 of an engine that rounds inputs to 8 bits with a scale per token and
    changes them in no other way."""
    kinds = {opened.linear_type(name) for name in opened.config.linears}
    reasons = []
    if kinds == {"FLOAT"}:
        reasons.append("its linears are float")
    if kinds.intersection(WIDE_TYPES):
        reasons.append(f"its linears' inputs have 16 bits, and {engine} has 8")
    if kinds.intersection(ASYMMETRIC_TYPES):
        reasons.append(f"its linears' inputs have zero points per token, and {engine}'s have none")
    if kinds.intersection(ROTATED_TYPES):
        reasons.append(f"its linears' inputs are rotated at run time, which {engine} does not do")
    if any("DYNAMIC" not in kind for kind in kinds - {"FLOAT"}):
        reasons.append("its linears' inputs have calibrated scales (W8A8), and this export writes W8A8_DYNAMIC")
    return reasons


def bias_obstacles(opened: Opened) -> list[str]:
    """The reason why a model of the plain architecture cannot have all biases of the checkpoint, if there is one."""
    plain = {f"{name}.bias" for name, size in opened.config.linears.items() if size.has_bias}
    biases = [f"{name}.bias" for name in (*opened.config.linears, *norm_names(opened.config))]
    extra = next((name for name in biases if name in opened.files and name not in plain), None)
    return [] if extra is None else [f"{opened.config.model_type} models have no {extra}"]


def cache_obstacles(schemes: Sequence[AttentionScheme | None], engine: str) -> list[str]:
    """The reasons why the tables of K and V cannot be those of an engine with one calibrated scale for all tokens."""
    present = [scheme for scheme in schemes if scheme is not None]
    if not present:
        return ["its attention is float, so there are no tables of K and V"]
    reasons = []
    if len(present) < len(schemes):
        reasons.append(f"layer {schemes.index(None)} has float attention, and {engine} quantizes every layer's cache")
    if any(scheme.k_scale is None or scheme.v_scale is None for scheme in present):
        reasons.append(f"K or V has a scale per token, and {engine} has calibrated ones")
    if any(is_mapped(scheme) for scheme in present):
        reasons.append("K or V is centered, equalized or rotated at run time")
    return reasons


def is_mapped(scheme: AttentionScheme) -> bool:
    """Whether K or V is transformed at run time before it is rounded."""
    maps = scheme.k_center is not None or scheme.k_equalizer is not None
    return maps or scheme.rotation_block > 0 or scheme.v_rotation_block > 0


def symmetric_scale(scale: Array, offset: Array | None) -> Floats:
    """The scale without zero points that covers the same values: x8 = x / scale + offset reaches ±127 on one side."""
    steps = 127 if offset is None else 127 + np.abs(np.asarray(offset, np.float32))
    found: Floats = np.asarray(scale, np.float32) * np.asarray(steps / 127, np.float32)
    return found


def has_zero_points(schemes: Iterable[AttentionScheme | None]) -> bool:
    """Whether K or V of a layer has zero points."""
    return any(scheme and (scheme.k_offset is not None or scheme.v_offset is not None) for scheme in schemes)


def check_float16(name: str, weight: Array, scale: Array, engine: str) -> None:
    """Check that float16 holds the scales [n] of an int8 weight [n, k]; rows of zeros need none.

    Raises:
        UnsupportedError: a scale is too small or too large.
    """
    exact = np.asarray(scale, np.float64)
    with np.errstate(over="ignore"):
        error = np.abs(exact.astype(np.float16) - exact)
    wrong = np.flatnonzero(np.asarray(weight).any(-1) & ~(error <= _HALF_ERROR * np.abs(exact)))
    if wrong.size:
        raise UnsupportedError(
            f"{name} cannot be converted for {engine}: row {wrong[0]} has the scale {exact[wrong[0]]:.3g}, and "
            f"float16, the type of scales there, has no number within 1/256 of it ({wrong.size} of {exact.size} rows)."
        )
