"""Checkpoints of compressed-tensors, as llm-compressor and auto-round write them.

Arithmetic (compressed-tensors 0.19.0): x8 = clamp(round(x / scale) + zero_point), x = (x8 - zero_point) · scale, for
inputs, weights, and K and V after RoPE.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..checkpoint.json_object import JsonObject, shown
from ..errors import CheckpointError, UnsupportedError
from .base import Opened, Source
from .int8_linears import Names, OpenedInt8
from .kv_tables import StaticTable, read_table, scheme_of

QUANTIZED_FORMATS = ("int-quantized", "naive-quantized")
ATTENTION = re.compile(r"(Attention|self_attn)\)*\$?$")
"""What targets of a group of config_groups mean the attention itself, by class or by module."""


class Group(NamedTuple):
    """Linears that are quantized alike.

    Attributes:
        targets: names, classes, and regular expressions after `re:`.
        dynamic: whether each token has its own scale of the inputs.
        symmetric: whether the inputs have no zero point.
    """

    targets: list[str]
    dynamic: bool
    symmetric: bool


class CompressedTensorsFormat:
    """The format of compressed-tensors."""

    name = "compressed-tensors"

    def detect(self, source: Source) -> bool:
        return source.quantization.raw.get("quant_method") == self.name

    def open(self, source: Source) -> Opened:
        return OpenedCompressedTensors(source)


class OpenedCompressedTensors(OpenedInt8):
    """A checkpoint of compressed-tensors."""

    format = CompressedTensorsFormat.name
    input_steps = 127.5  # a scale is half the range divided by half of 255 steps

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        table = source.quantization
        _refuse_other_features(table)
        cache = table.optional_object("kv_cache_scheme")
        groups, ignore = _groups(table, cache is not None), _targets(table, "ignore", [])
        for name in self.config.linears:
            group = None if _rank(name, ignore) is not None else _group_of(name, groups)
            is_int8 = f"{name}.weight" in self.files and self.files.dtype(f"{name}.weight") == "int8"
            if group is None and is_int8:
                raise CheckpointError(f"{name}.weight is int8, but {table.source} does not quantize {name}.")
            if group is not None and (is_int8 or name != "lm_head"):  # a tied head stays float
                self.linears[name] = self._linear_names(name, group)
        layers = [f"model.layers.{layer}.self_attn." for layer in range(self.config.num_layers)]
        unused = [f"{prefix}q_{kind}" for prefix in layers for kind in ("scale", "zero_point")] if cache else []
        tables = [] if cache is None else [self._table_names(cache, prefix, part) for prefix in layers for part in "kv"]
        self.check([*unused, *(name for pair in tables for name in pair if name is not None)])
        if cache is not None:
            self._read_schemes(cache, layers)
        if any(name in self.files for name in unused):
            # In files of llm-compressor 0.14.0 they are uninitialized memory.
            self.ignored += [name for name in unused if name in self.files]
            self.notes.append("The scales of q (q_scale) are not used: each token has its own scale of q.")

    def _linear_names(self, name: str, group: Group) -> Names:
        self.offset(f"{name}.weight_zero_point", symmetric=True)
        if group.dynamic:
            return Names(f"{name}.weight_scale")
        offset = self.offset(f"{name}.input_zero_point", group.symmetric)
        return Names(f"{name}.weight_scale", f"{name}.input_scale", offset)

    def _table_names(self, cache: JsonObject, prefix: str, part: str) -> tuple[str | None, str | None]:
        """The names of K's or V's scale and zero point; None: there is none."""
        if cache.flag("dynamic", False):
            return None, None
        return f"{prefix}{part}_scale", self.offset(f"{prefix}{part}_zero_point", cache.flag("symmetric", True))

    def _read_schemes(self, cache: JsonObject, layers: list[str]) -> None:
        _check_int8(cache)
        dynamic = cache.flag("dynamic", False)
        if not dynamic and (strategy := cache.text("strategy")) not in ("tensor", "attn_head", "channel"):
            raise UnsupportedError(f"{cache.source}: strategy {shown(strategy)} is not supported for static scales.")
        if dynamic and not cache.flag("symmetric", True):
            raise UnsupportedError(f"{cache.source}: dynamic scales with zero points are not supported.")
        for layer, prefix in enumerate(layers):
            k, v = (self._table(*self._table_names(cache, prefix, part)) for part in "kv")
            self.schemes[layer] = scheme_of(self.config, k, v)
        if not dynamic:
            self.notes.append(
                "llm-compressor's default observer sets the tables of K and V by its first calibration sample."
            )

    def _table(self, scale: str | None, offset: str | None) -> StaticTable | None:
        if scale is None:
            return None
        return read_table(self.checked, scale, offset, self.config.num_kv_heads, self.config.head_dim)


def _refuse_other_features(table: JsonObject) -> None:
    status = table.text("quantization_status", "compressed")
    if status not in ("compressed", "frozen"):  # some writers leave the status before the last
        raise UnsupportedError(
            f"{table.source}: quantization_status {shown(status)} is not supported; save it compressed."
        )
    sparsity = table.object("sparsity_config").text("format", "dense")
    if sparsity != "dense":
        raise UnsupportedError(f"{table.source}: sparse weights ({shown(sparsity)}) are not supported.")
    transforms = table.object("transform_config").object("config_groups")
    for name in transforms.raw:
        applied = transforms.object(name).raw.get("apply") or []
        for apply in applied if isinstance(applied, list) else [applied]:
            location = apply.get("location") if isinstance(apply, Mapping) else apply
            if not str(location).startswith("weight_"):
                raise UnsupportedError(
                    f"{table.source}, transform_config: a transform at run time ({shown(location)}) is not supported; "
                    "those folded into weights are."
                )


def _groups(table: JsonObject, has_cache: bool) -> list[Group]:
    """The groups of linears, checked to be W8A8 in int8. Groups that mean the attention only repeat kv_cache_scheme."""
    groups, found = table.object("config_groups"), []
    for group in map(groups.object, groups.raw):
        targets, where = _targets(group, "targets"), group.source
        weights, inputs = group.optional_object("weights"), group.optional_object("input_activations")
        if targets and all(ATTENTION.search(target) for target in targets) and weights is None:
            if inputs is None or group.raw.get("output_activations") is not None:
                raise UnsupportedError(f"{where}: of the attention, only q, K and V may be quantized.")
            _check_int8(inputs)
            if not has_cache:
                raise UnsupportedError(f"{where}: the attention is quantized, but there is no kv_cache_scheme.")
            continue
        if weights is None:
            raise UnsupportedError(f"{where}: a group without quantized weights is not supported.")
        _check_int8(weights)
        if inputs is None:
            raise UnsupportedError(f"{where}: only the weights are quantized (W8A16), which has no int8 kernel.")
        _check_int8(inputs)
        if group.raw.get("output_activations") is not None:
            raise UnsupportedError(f"{where}: quantized outputs (output_activations) are not supported.")
        stored = group.text("format", "") or table.text("format")
        if stored not in QUANTIZED_FORMATS:
            raise UnsupportedError(f"{where}: format {shown(stored)} is not supported.")
        if (strategy := weights.text("strategy")) not in ("channel", "tensor"):
            raise UnsupportedError(f"{where}: weights with a scale per {shown(strategy)[1:-1]} are not supported.")
        if not weights.flag("symmetric", True):
            raise UnsupportedError(f"{where}: weights with zero points are not supported.")
        dynamic, symmetric = inputs.flag("dynamic", False), inputs.flag("symmetric", True)
        strategy = shown(inputs.text("strategy"))[1:-1]
        if dynamic and (strategy != "token" or not symmetric):
            raise UnsupportedError(
                f"{where}: dynamic inputs must have one symmetric scale per token, not per {strategy}"
                f"{'' if symmetric else ' with zero points'}."
            )
        if not dynamic and strategy != "tensor":
            raise UnsupportedError(f"{where}: static inputs must have one scale per tensor, not per {strategy}.")
        found.append(Group(targets, dynamic, symmetric))
    return found


def _targets(table: JsonObject, key: str, default: list[str] | None = None) -> list[str]:
    """Targets as in Group. Raises: CheckpointError: they are no list of strings, or an expression is invalid."""
    targets = table.texts(key, default)
    for target in targets:
        if target.startswith("re:"):
            try:
                re.compile(target[3:])
            except (re.error, RecursionError, OverflowError):
                raise CheckpointError(
                    f"{table.source}: {key} has {shown(target)}, which is not a valid regular expression."
                ) from None
    return targets


def _check_int8(arguments: JsonObject) -> None:
    """Raises: UnsupportedError: the arguments of a quantization name another type than int8."""
    kind, bits = arguments.text("type", "int"), arguments.integer("num_bits", 8)
    if (kind, bits) != ("int", 8):
        name = f"FP{bits}" if kind == "float" else f"INT{bits}"
        raise UnsupportedError(
            f"{arguments.source}: {name} is not supported, only INT8. Start from the float model, or from W8A8."
        )
    if arguments.raw.get("actorder") == "group" or arguments.raw.get("group_size") not in (None, -1):
        raise UnsupportedError(f"{arguments.source}: scales per group of inputs are not supported.")


def _group_of(name: str, groups: list[Group]) -> Group | None:
    """The group of a linear: a group that names it comes before one with an expression, and that before the class; of
    several expressions, the first in alphabetical order counts."""
    ranked = [(rank, group) for group in groups if (rank := _rank(name, group.targets)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _rank(name: str, targets: list[str]) -> tuple[int, str] | None:
    """How targets mean a linear: 0 by name, 1 by a regular expression after `re:`, 2 by class; and the target."""
    if name in targets:
        return 0, name
    matching = [target for target in targets if target.startswith("re:") and re.match(target[3:], name)]
    if matching:
        return 1, min(matching)
    return (2, "Linear") if "Linear" in targets else None
