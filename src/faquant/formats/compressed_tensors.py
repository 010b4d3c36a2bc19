"""Checkpoints of compressed-tensors, as llm-compressor and auto-round write them.

Arithmetic (compressed-tensors 0.19.0): x8 = clamp(round(x / scale) + zero_point), x = (x8 - zero_point) · scale, for
inputs, weights, and K and V after RoPE.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..checkpoint.json_object import JsonObject, shown
from ..errors import CheckpointError, UnsupportedError
from ..kernels.tables import LinearTable
from .base import Opened, Source, check_tensors, float_table
from .int8_linears import Names, check_linear, read_linear
from .kv_tables import StaticTable, read_table, scheme_of

QUANTIZED_FORMATS = ("int-quantized", "naive-quantized")
ATTENTION = re.compile(r"Attention$|self_attn")
"""What targets of a group of config_groups mean the attention itself, by class or by module."""


class Group(NamedTuple):
    """Linears that are quantized alike.

    Attributes:
        targets: names, classes, and regular expressions after `re:`.
        dynamic: whether each token has its own scale of the inputs.
    """

    targets: list[str]
    dynamic: bool


class CompressedTensorsFormat:
    """The format of compressed-tensors."""

    name = "compressed-tensors"

    def detect(self, source: Source) -> bool:
        return source.quantization.raw.get("quant_method") == self.name

    def open(self, source: Source) -> Opened:
        return OpenedCompressedTensors(source)


class OpenedCompressedTensors(Opened):
    """A checkpoint of compressed-tensors."""

    format = CompressedTensorsFormat.name
    input_steps = 127.5  # a scale is half the range divided by half of 255 steps

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        table = source.quantization
        _refuse_other_features(table)
        groups, ignore = _groups(table), _targets(table, "ignore", [])
        self._names: dict[str, Names] = {}
        for name in self.config.linears:
            group = None if _rank(name, ignore) is not None else _group_of(name, groups)
            is_int8 = f"{name}.weight" in self.files and self.files.dtype(f"{name}.weight") == "int8"
            if group is None or (name == "lm_head" and not is_int8):
                if is_int8:
                    raise CheckpointError(f"{name}.weight is int8, but {table.source} does not quantize {name}.")
                continue
            self._names[name] = _linear_names(name, group)
        cache = table.optional_object("kv_cache_scheme")
        self.ignored = check_tensors(self.config, self.files, self._tensor_names(cache is not None))
        for name, names in self._names.items():
            check_linear(self.checked, self.config, name, names)
            self._check_symmetric(name)
        if cache is not None:
            self._read_schemes(cache)

    def linear_type(self, name: str) -> str:
        names = self._names.get(name)
        return "FLOAT" if names is None else "W8A8_DYNAMIC" if names.input_scale is None else "W8A8"

    def linear(self, name: str) -> LinearTable:
        if name in self._names:
            return read_linear(self.checked, self.config, name, self._names[name], self.input_steps)
        return float_table(self.checked, self.config, name)

    def _tensor_names(self, has_cache: bool) -> Iterator[str]:
        for name in self._names:
            yield from (
                f"{name}.{part}" for part in ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
            )
            yield from (f"{name}.{part}" for part in ("input_scale", "input_zero_point"))
        for layer in range(self.config.num_layers if has_cache else 0):
            prefix = f"model.layers.{layer}.self_attn."
            yield from (f"{prefix}{part}_{kind}" for part in "qkv" for kind in ("scale", "zero_point"))

    def _check_symmetric(self, name: str) -> None:
        """Unpacked weights have a zero point only if it is not zero, which int8 linears cannot have."""
        zero = f"{name}.weight_zero_point"
        if zero in self.files and self.checked.get(zero).any():
            raise UnsupportedError(
                f"{zero} is not zero: the weights are quantized asymmetrically, which has no kernel."
            )

    def _read_schemes(self, cache: JsonObject) -> None:
        _check_int8(cache)
        dynamic = cache.flag("dynamic", False)
        if not dynamic and (strategy := cache.text("strategy")) not in ("tensor", "attn_head", "channel"):
            raise UnsupportedError(f"{cache.source}: strategy {shown(strategy)} is not supported for static scales.")
        if dynamic and not cache.flag("symmetric", True):
            raise UnsupportedError(f"{cache.source}: dynamic scales with zero points are not supported.")
        for layer in range(self.config.num_layers):
            prefix = f"model.layers.{layer}.self_attn."
            k, v = (None if dynamic else self._table(prefix, part) for part in "kv")
            self.schemes[layer] = scheme_of(self.config, k, v)
        layers = range(self.config.num_layers)
        tables = [f"model.layers.{layer}.self_attn.q_{kind}" for layer in layers for kind in ("scale", "zero_point")]
        unused = [name for name in tables if name in self.files]
        if unused:
            # In files of llm-compressor 0.14.0 they are uninitialized memory.
            self.ignored += unused
            self.notes.append("The scales of q (q_scale) are not used: each token has its own scale of q.")
        if not dynamic:
            self.notes.append(
                "llm-compressor's default observer sets the tables of K and V by its first calibration sample."
            )

    def _table(self, prefix: str, part: str) -> StaticTable:
        scale, offset = f"{prefix}{part}_scale", f"{prefix}{part}_zero_point"
        return read_table(self.checked, scale, offset, self.config.num_kv_heads, self.config.head_dim)


def _refuse_other_features(table: JsonObject) -> None:
    status = table.text("quantization_status", "compressed")
    if status != "compressed":
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


def _groups(table: JsonObject) -> list[Group]:
    """The groups of linears, checked to be W8A8 in int8. Groups that mean the attention only repeat kv_cache_scheme."""
    groups, found = table.object("config_groups"), []
    for group in map(groups.object, groups.raw):
        targets, where = _targets(group, "targets"), group.source
        weights, inputs = group.optional_object("weights"), group.optional_object("input_activations")
        if all(ATTENTION.search(target) for target in targets) and weights is None:
            _check_int8(group.object("input_activations"))
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
        found.append(Group(targets, dynamic))
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
    """The group of a linear: a group that names it comes before one with an expression, and that before the class."""
    ranked = [(rank, group) for group in groups if (rank := _rank(name, group.targets)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _rank(name: str, targets: list[str]) -> int | None:
    """Whether targets mean a linear: 0 by its name, 1 by a regular expression after `re:`, 2 by its class; None: no."""
    if name in targets:
        return 0
    if any(target.startswith("re:") and re.match(target[3:], name) for target in targets):
        return 1
    return 2 if "Linear" in targets else None


def _linear_names(name: str, group: Group) -> Names:
    if group.dynamic:
        return Names(f"{name}.weight_scale")
    return Names(f"{name}.weight_scale", f"{name}.input_scale", f"{name}.input_zero_point")
