"""Which layers of a model have a sliding window, and which have RoPE, as config.json says."""

from collections.abc import Sequence
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .families import Family
from .json_object import JsonObject


def layers_without_rope(reader: JsonObject, family: Family, layers: int) -> list[bool]:
    """For each layer, whether it has no RoPE: 0 in no_rope_layers (sic), or else every no_rope_layer_interval-th."""
    if not family.no_rope:
        return [False] * layers
    rotated = reader.raw.get("no_rope_layers")
    if rotated is None:
        interval = reader.integer("no_rope_layer_interval", 4)
        return [(layer + 1) % interval == 0 for layer in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or any(type(one) is not int for one in rotated):
        raise reader.wrong("no_rope_layers", rotated, f"a list of 0 or 1 for each of the {layers} layers")
    return [one == 0 for one in rotated[:layers]]


def sliding_windows(
    reader: JsonObject, family: Family, layers: int, without_rope: Sequence[bool]
) -> tuple[int | None, ...]:
    """The window of each layer. As in transformers, some families have none, whatever the keys say."""
    window: int | None = None
    if family.windows == "all" or (family.windows == "switched" and reader.flag("use_sliding_window", False)):
        named = reader.raw.get("sliding_window", family.window) is not None
        window = reader.integer("sliding_window", family.window) if named else None
    kinds = reader.raw.get("layer_types")
    if kinds is None and family.full_every:
        number = reader.integer(family.pattern_key, family.full_every) if family.pattern_key else family.full_every
        every = [(layer + 1) % number == 0 for layer in range(layers)]
        kinds = ["full_attention" if full else "sliding_attention" for full in every]
    if kinds is not None:
        windows = _windows_of_kinds(reader, layers, window, kinds)
        if not family.reads_layer_types and windows != (window,) * layers:
            raise UnsupportedError(
                f"{reader.source}: layer_types and sliding_window differ, and transformers ignores layer_types for "
                f"{reader.text('model_type')}. Remove layer_types."
            )
        return windows
    if window is None or family.windows == "all":
        return (window,) * layers
    if family.no_rope:
        return tuple(window if no_rope else None for no_rope in without_rope)
    first = reader.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(layers))


def _windows_of_kinds(reader: JsonObject, layers: int, window: int | None, kinds: Any) -> tuple[int | None, ...]:
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise UnsupportedError(
            f"{reader.source}: layer_types must list full_attention or sliding_attention for each of the "
            f"{layers} layers."
        )
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError(
            f"{reader.source}: layer_types has sliding_attention, but no sliding window is set "
            "(sliding_window, and for some families use_sliding_window)."
        )
    return tuple(None if kind == "full_attention" else window for kind in kinds)
