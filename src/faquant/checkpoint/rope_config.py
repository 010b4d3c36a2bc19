"""RopeConfig: the validated RoPE parameters of config.json.

transformers' `modeling_rope_utils` says what each key means. A key that it ignores but that other loaders or the
vendor's own class may apply is refused, not ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import CheckpointError, UnsupportedError
from .families import Family
from .json_object import JsonObject, shown

_ORIGINAL = "original_max_position_embeddings"

ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "llama3": ("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", _ORIGINAL, "attention_factor", "short_factor", "long_factor"),
}
"""The keys that each RoPE type uses, besides those that all use."""

_PARTIAL = "partial_rotary_factor"
_COMMON = ("rope_type", "type", "rope_theta", _PARTIAL)
# `finetuned` tells about training. The sections of a vision model say which coordinate rotates a channel; for text, all
# coordinates are the position.
_WITHOUT_EFFECT = ("finetuned", _ORIGINAL, "mrope_section", "mrope_interleaved")
# Factors that another type or the vendor's own class would apply, unless they are 1.
_NEUTRAL_IF_ONE = ("factor", "attention_factor", "attn_factor", "extrapolation_factor")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding as in config.json's `rope_parameters` (or `rope_theta` and `rope_scaling`).

    `original_max_position` is in tokens. Fields that the type does not use keep their defaults. The type `none` is that
    of layers without RoPE.

    Attributes:
        rotated: the share of a head's channels, from the first on, that are rotated.
        short_factor, long_factor: of longrope, the divisors of the frequencies up to original_max_position and beyond.
    """

    rope_type: str
    theta: float
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    rotated: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def rotary_dim(self, head_dim: int) -> int:
        """The number of channels of a head that are rotated."""
        return 0 if self.rope_type == "none" else int(head_dim * self.rotated)

    def length_used(self, length: int | None) -> int | None:
        """The least maximum length of a request, in tokens, that gives the same frequencies as `length`; None: they do
        not depend on it."""
        if self.rope_type == "dynamic":
            return max(length or 0, self.original_max_position)
        if self.rope_type == "longrope":  # its two sets of factors
            return 1 + self.original_max_position * (length is not None and length > self.original_max_position)
        return None


NO_ROPE = RopeConfig("none", 1.0)


def parse_ropes(
    reader: JsonObject, max_position: int, head_dim: int, family: Family
) -> tuple[RopeConfig, RopeConfig | None]:
    """Read the RoPE table of config.json: `rope_parameters` of transformers 5, or `rope_scaling` of older versions.

    Returns:
        RoPE of the layers, and of those with a sliding window if the family has another one for them.

    Raises:
        CheckpointError: a value is wrong, or values in two places contradict each other.
        UnsupportedError: the type, or a key that changes the rotation, is not supported.
    """
    if not family.rope_by_window:
        return _parse_rope(reader, max_position, head_dim, family), None
    tables = reader.raw.get("rope_parameters")
    if not isinstance(tables, Mapping) or not any(isinstance(table, Mapping) for table in tables.values()):
        if tables:
            raise UnsupportedError(
                f"{reader.source}: rope_parameters needs full_attention and sliding_attention; transformers ignores "
                "other tables of this model_type."
            )
        full = _parse_rope(reader, max_position, head_dim, family)
        if family.local_theta is None and full.theta != family.theta:
            raise UnsupportedError(
                f"{reader.source}: rope_theta ({full.theta:g}) is read for layers with full attention only by some "
                "versions of transformers, and for all layers by others. Write rope_parameters with a rope_theta for "
                "full_attention and one for sliding_attention."
            )
        theta = full.theta if family.local_theta is None else reader.number("rope_local_base_freq", family.local_theta)
        sliding = RopeConfig("default", theta, original_max_position=max_position)
    else:
        if reader.raw.get("rope_scaling"):
            raise CheckpointError(f"{reader.source} has both rope_parameters and rope_scaling. Remove the wrong one.")
        by_kind = JsonObject(tables, f"{reader.source}, rope_parameters")
        unknown = sorted(map(str, tables.keys() - {"full_attention", "sliding_attention"}))
        if unknown:
            raise UnsupportedError(f"{by_kind.source}: {shown(unknown[0])} is not a kind of layers.")
        # Each kind has a theta of its own; one beside them is ignored by some versions of transformers.
        kinds = "full_attention", "sliding_attention"
        if "rope_theta" in reader.raw and not all("rope_theta" in by_kind.object(kind).raw for kind in kinds):
            raise CheckpointError(f"{by_kind.source} needs rope_theta for each kind of layers, not beside them.")
        inside = JsonObject({key: value for key, value in reader.raw.items() if key != "rope_theta"}, reader.source)
        local = replace(family, theta=family.local_theta or family.theta)
        full = _rope_of_table(inside, by_kind.object("full_attention"), max_position, family)
        sliding = _rope_of_table(inside, by_kind.object("sliding_attention"), max_position, local)
        for rope in (full, sliding):
            _check_sizes(reader, rope, head_dim)
    for rope in (full, sliding):
        if rope.theta <= 1.0:
            raise CheckpointError(f"{reader.source}: rope_local_base_freq must be greater than 1, not {rope.theta}.")
        if rope.rope_type in ("dynamic", "longrope"):
            raise UnsupportedError(
                f"{reader.source}: RoPE type {rope.rope_type!r} is not supported by kinds of layers."
            )
    return full, sliding


def _parse_rope(reader: JsonObject, max_position: int, head_dim: int, family: Family) -> RopeConfig:
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        table = reader.raw.get(key)
        if table is not None and not isinstance(table, Mapping):
            raise reader.wrong(key, table, "an object")
        if table:
            found.append(_rope_of_table(reader, JsonObject(table, f"{reader.source}, {key}"), max_position, family))
    if not found:
        found.append(_rope_of_table(reader, JsonObject({}, reader.source), max_position, family))
    if found[0] != found[-1]:
        raise CheckpointError(f"{reader.source}: rope_parameters and rope_scaling differ. Remove the wrong one.")
    _check_sizes(reader, found[0], head_dim)
    return found[0]


def _check_sizes(reader: JsonObject, rope: RopeConfig, head_dim: int) -> None:
    rotary = rope.rotary_dim(head_dim)
    if rope.rope_type == "dynamic" and rotary < 4:
        raise CheckpointError(f"{reader.source}: RoPE type 'dynamic' needs a head_dim of at least 4, not {rotary}.")
    if rotary % 2 or rotary == 0:
        raise CheckpointError(
            f"{reader.source}: partial_rotary_factor {rope.rotated} gives {rotary} of {head_dim} channels, but RoPE "
            "rotates pairs of channels."
        )
    for name in ("short_factor", "long_factor") if rope.rope_type == "longrope" else ():
        if len(getattr(rope, name)) != rotary // 2:
            raise CheckpointError(
                f"{reader.source}: {name} has {len(getattr(rope, name))} numbers, but RoPE rotates {rotary // 2} pairs "
                "of channels."
            )


def _rotated(reader: JsonObject, table: JsonObject, family: Family) -> float:
    """The share of the channels that are rotated."""
    _refuse_contradiction(reader, table, _PARTIAL)
    rotated = reader.number(_PARTIAL, table.number(_PARTIAL, 1.0))
    if rotated != 1.0 and not family.partial_rotary:
        raise UnsupportedError(f"{reader.source}: partial_rotary_factor other than 1 is not supported.")
    if not 0 < rotated <= 1:
        raise CheckpointError(f"{reader.source}: partial_rotary_factor must be between 0 and 1, not {rotated}.")
    return rotated


def _rope_of_table(reader: JsonObject, table: JsonObject, max_position: int, family: Family) -> RopeConfig:
    if any(isinstance(value, Mapping) for value in table.raw.values()):
        raise UnsupportedError(f"{table.source}: parameters that differ between kinds of layers are not supported.")
    named = table.text("rope_type", "") or table.text("type", "default")
    if table.text("type", named) != named:
        raise CheckpointError(
            f"{table.source}: rope_type {named!r} and type {shown(table.raw['type'])} differ. Remove the wrong one."
        )
    rope_type = dict(family.rope_aliases).get(named, named)
    if rope_type not in ROPE_KEYS:
        raise UnsupportedError(
            f"{table.source}: RoPE type {shown(rope_type)} is not supported; these are: {', '.join(ROPE_KEYS)}."
        )
    _refuse_unknown_keys(table, rope_type)
    theta = table.number("rope_theta", reader.number("rope_theta", family.theta))
    _refuse_contradiction(reader, table, "rope_theta")
    if theta <= 1.0:
        raise CheckpointError(f"{table.source}: rope_theta must be greater than 1, not {theta}.")
    rotated = _rotated(reader, table, family)
    rope = RopeConfig(rope_type, theta, original_max_position=max_position, rotated=rotated)
    if rope_type == "default":
        return rope
    if rope_type in ("yarn", "llama3", "longrope"):
        original = _original(reader, table, max_position, family)
        rope = replace(rope, original_max_position=original)
    from_sizes = rope_type == "longrope" or (rope_type == "yarn" and "factor" in table.raw)
    if from_sizes and table.raw.get("factor") is None:
        factor = max_position / rope.original_max_position
    else:
        factor = table.number("factor")
    if factor < 1.0:
        raise CheckpointError(f"{table.source}: the RoPE factor must be at least 1, not {factor}.")
    rope = replace(rope, factor=factor)
    if rope_type == "yarn":
        return replace(
            rope,
            attention_factor=table.optional_number("attention_factor"),
            beta_fast=table.number("beta_fast", 0.0) or 32.0,
            beta_slow=table.number("beta_slow", 0.0) or 1.0,
            mscale=table.optional_number("mscale"),
            mscale_all_dim=table.optional_number("mscale_all_dim"),
            # transformers treats null as false.
            truncate=table.flag("truncate", "truncate" not in table.raw),
        )
    if rope_type == "longrope":
        if rope.original_max_position < 2:
            raise CheckpointError(f"{table.source}: longrope needs an {_ORIGINAL} of at least 2.")
        return replace(
            rope,
            attention_factor=table.optional_number("attention_factor"),
            short_factor=_factors(table, "short_factor"),
            long_factor=_factors(table, "long_factor"),
        )
    if rope_type == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        if not 0 < low < high:
            raise CheckpointError(f"{table.source}: low_freq_factor must be positive and below high_freq_factor.")
        return replace(rope, low_freq_factor=low, high_freq_factor=high)
    return rope


def _original(reader: JsonObject, table: JsonObject, max_position: int, family: Family) -> int:
    """The context before scaling, in tokens."""
    _refuse_contradiction(reader, table, _ORIGINAL)
    if family.original_context is None:
        return reader.integer(_ORIGINAL, table.integer(_ORIGINAL, max_position))
    original = reader.integer(_ORIGINAL, family.original_context)
    if table.integer(_ORIGINAL, original) != original:
        raise UnsupportedError(
            f"{table.source}: {_ORIGINAL} must stand beside the table, where transformers reads it and otherwise takes "
            f"{family.original_context}."
        )
    return original


def _factors(table: JsonObject, key: str) -> tuple[float, ...]:
    values = table.raw.get(key)
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e6 for value in values
    )
    if not isinstance(values, list) or not numbers:
        raise table.wrong(key, values, "a list of positive numbers")
    return tuple(map(float, values))


def _refuse_unknown_keys(table: JsonObject, rope_type: str) -> None:
    known = (*_COMMON, *ROPE_KEYS[rope_type], *_WITHOUT_EFFECT)
    for key, value in table.raw.items():
        neutral = value is None or (key in _NEUTRAL_IF_ONE and value == 1.0)
        if key not in known and not neutral:
            raise UnsupportedError(
                f"{table.source}: {shown(key)} ({shown(value)}) is not supported with RoPE type {rope_type!r}. "
                "Remove it if the model does not use it."
            )


def _refuse_contradiction(reader: JsonObject, table: JsonObject, key: str) -> None:
    """Refuse a value that differs inside and outside of the table: versions of transformers take different ones."""
    inside, outside = table.raw.get(key), reader.raw.get(key)
    if inside is not None and outside is not None and inside != outside:
        raise CheckpointError(
            f"{reader.source}: {key} is {shown(outside)}, but {shown(inside)} in {table.source.rpartition(', ')[2]}; "
            "they differ. Remove the wrong one."
        )
