"""The recipes that a search tries, and the rows of its table."""

from dataclasses import dataclass

from ..evaluation.divergence import Divergence
from ..recipe import AttentionRecipe, LinearRecipe

CONTEXT = 4096
"""Context in tokens at which costs are compared."""
_P16, _ROTATED = 1.1, 1.01
"""Relative cost of 16-bit P in the attention, and of a rotation at run time in the linears, for this comparison."""
_PLAIN = AttentionRecipe(kv_scale="head", center=False, equalize=False, rotate=False, rotate_v=False, p="uint8")
ATTENTION = {
    "head": ("one calibrated scale per head, P 8 bits", _PLAIN),
    "head, rotated": ("+ q, k and v rotated (R2, R3)", _PLAIN.model_copy(update={"rotate": True, "rotate_v": True})),
    "head, centered": ("+ K centered", AttentionRecipe(kv_scale="head", equalize=False, p="uint8")),
    "head, mapped": ("+ K's channels balanced against q's", AttentionRecipe(kv_scale="head", p="uint8")),
    "channel, mapped": ("a calibrated scale per channel", AttentionRecipe(kv_scale="channel", p="uint8")),
    "channel, mapped, P 16": ("+ P 16 bits (`static`)", AttentionRecipe(kv_scale="channel")),
    "token, rotated": (
        "a scale per token, rotated, P 8 bits",
        AttentionRecipe(center=False, equalize=False, p="uint8"),
    ),
    "token, mapped": ("+ K centered and balanced", AttentionRecipe(p="uint8")),
    "token, mapped, P 16": ("+ P 16 bits (`default`)", AttentionRecipe()),
}
"""Recipes to try for the attention, by name, with their difference from the previous one."""

LINEAR = {
    "nearest": ("rounded to nearest", LinearRecipe(rotate="none", equalize=False, rounding="nearest")),
    "balanced": ("+ inputs balanced against weights", LinearRecipe(rotate="none", rounding="nearest")),
    "folded": ("residual stream rotated (R1), weights compensated", LinearRecipe(rotate="folded")),
    "rotated, nearest": ("inputs balanced, and rotated at run time", LinearRecipe(rounding="nearest")),
    "rotated": ("+ weights compensated (`default`)", LinearRecipe()),
}
"""Recipes to try for the linears, all of them with a scale per token."""


@dataclass(frozen=True)
class Measured:
    """One row of the table. KL in nats; top-1 as a share; bytes of the cache per token, and of all weights.

    Attributes:
        part: `attention` or `linears` alone, one `group` of linears with the same input alone, or `both`.
        change: the difference from the previous row.
        cost: bytes that a decode step reads at CONTEXT tokens, with surcharges for 16-bit P and rotations.
    """

    part: str
    name: str
    change: str
    kl: float
    top1: float
    bytes_per_token: int
    weight_bytes: int
    cost: float
    chosen: bool = False

    @classmethod
    def of(
        cls,
        part: str,
        name: str,
        change: str,
        result: Divergence,
        per_token: int,
        weight_bytes: int,
        recipe: AttentionRecipe | LinearRecipe | None = None,
    ) -> "Measured":
        """A row for `part`, with the cost of its recipe."""
        cost = float(weight_bytes + CONTEXT * per_token)
        if isinstance(recipe, AttentionRecipe) and recipe.p in ("int16", "int8x2"):
            cost *= _P16
        if isinstance(recipe, LinearRecipe) and recipe.rotate == "inputs":
            cost *= _ROTATED
        return cls(part, name, change, result.kl_mean, result.top1, per_token, weight_bytes, cost)
