"""Checkpoints of AMD Quark.

Arithmetic (amd-quark 0.13): x8 = clamp(round(x / scale) + zero_point), x = (x8 - zero_point) · scale. Its tables of K
are for k_proj's output before RoPE, unless `kv_cache_post_rope` is true.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from ..kernels.tables import LinearTable
from .base import Opened, Source, check_tensors, float_table
from .int8_linears import Names, check_linear, read_linear
from .kv_tables import StaticTable, read_table, scheme_of

LINEAR_PARTS = ("weight_scale", "weight_zero_point", "input_scale", "input_zero_point")
KV_PROJECTIONS = ("k_proj", "v_proj")


class QuarkFormat:
    """The format of AMD Quark."""

    name = "quark"

    def detect(self, source: Source) -> bool:
        return source.quantization.get("quant_method") == self.name

    def open(self, source: Source) -> Opened:
        return OpenedQuark(source)


class OpenedQuark(Opened):
    """A checkpoint of AMD Quark."""

    format = QuarkFormat.name
    input_steps = 127.5  # a scale is half the range divided by half of 255 steps

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        self._where = f"{source.directory / 'config.json'}, quantization_config"
        table = source.quantization
        _refuse_other_features(table, self._where)
        self._names: dict[str, Names] = {}
        outputs: list[str] = []
        for name in self.config.linears:
            spec = _spec(table, name)
            if spec is None:
                continue
            if spec.get("output_tensors") is not None:
                self._check_output(name, spec["output_tensors"])
                outputs.append(name)
            if spec.get("weight") is not None and f"{name}.weight" in self.files:
                self._names[name] = self._linear_names(name, spec)
        self.ignored = check_tensors(self.config, self.files, self._tensor_names(outputs))
        for name, names in self._names.items():
            check_linear(self.checked, self.config, name, names)
            zero = f"{name}.weight_zero_point"
            if zero in self.files and self.checked.get(zero).any():
                raise UnsupportedError(
                    f"{zero} is not zero: the weights are quantized asymmetrically, which has no kernel."
                )
        if outputs:
            self._read_schemes(outputs, bool(table.get("kv_cache_post_rope", False)))

    def linear_type(self, name: str) -> str:
        names = self._names.get(name)
        return "FLOAT" if names is None else "W8A8_DYNAMIC" if names.input_scale is None else "W8A8"

    def linear(self, name: str) -> LinearTable:
        if name in self._names:
            return read_linear(self.checked, self.config, name, self._names[name], self.input_steps)
        return float_table(self.checked, self.config, name)

    def _tensor_names(self, outputs: list[str]) -> Iterator[str]:
        for name in self._names:
            yield from (f"{name}.{part}" for part in LINEAR_PARTS)
        for name in outputs:
            yield from (f"{name}.output_scale", f"{name}.output_zero_point")

    def _linear_names(self, name: str, spec: Mapping[str, Any]) -> Names:
        where = f"{self._where}: {name}"
        weight, inputs = spec["weight"], spec.get("input_tensors")
        _check_int8(weight, f"{where}, weight", ("per_tensor", "per_channel"))
        if not weight.get("symmetric", True):
            raise UnsupportedError(f"{where}: weights with zero points are not supported.")
        if inputs is None:
            raise UnsupportedError(f"{where}: only the weights are quantized (W8A16), which has no int8 kernel.")
        if not inputs.get("is_dynamic", False):
            _check_int8(inputs, f"{where}, input_tensors", ("per_tensor",))
            return Names(f"{name}.weight_scale", f"{name}.input_scale", f"{name}.input_zero_point")
        _check_int8(inputs, f"{where}, input_tensors", ("per_token", "per_channel"))
        if inputs.get("qscheme") == "per_channel" and inputs.get("ch_axis") != 1:  # of [batch, tokens, channels]
            raise UnsupportedError(f"{where}: dynamic inputs must have one scale per token.")
        if not inputs.get("symmetric", True):
            raise UnsupportedError(f"{where}: dynamic inputs with zero points are not supported.")
        return Names(f"{name}.weight_scale")

    def _check_output(self, name: str, spec: Mapping[str, Any]) -> None:
        where = f"{self._where}: {name}, output_tensors"
        if not name.endswith(KV_PROJECTIONS):
            raise UnsupportedError(f"{where}: quantized outputs are supported for k_proj and v_proj only.")
        _check_int8(spec, where, ("per_tensor", "per_channel"))
        if spec.get("is_dynamic", False):
            raise UnsupportedError(f"{where}: dynamic scales of the cache are not supported.")

    def _read_schemes(self, outputs: list[str], after_rope: bool) -> None:
        for layer in range(self.config.num_layers):
            prefix = f"model.layers.{layer}.self_attn."
            k, v = (f"{prefix}{part}" for part in KV_PROJECTIONS)
            if not {k, v} <= set(outputs):
                raise UnsupportedError(f"{self._where}: the cache of layer {layer} is not quantized for both K and V.")
            self.schemes[layer] = scheme_of(self.config, self._table(k) if after_rope else None, self._table(v))
            if not after_rope:
                self._table(k)  # its values are checked, although they are not used
        if not after_rope:
            self.notes.append(
                "The tables of K are for K before RoPE, which a cache after RoPE cannot use: K has a scale per token "
                "and head instead. The tables of V are used."
            )

    def _table(self, name: str) -> StaticTable:
        spec = (_spec(self.raw_config["quantization_config"], name) or {})["output_tensors"]
        offset = f"{name}.output_zero_point"
        if not spec.get("symmetric", True) and offset not in self.files:
            raise CheckpointError(f"The checkpoint has no tensor {offset}, but its quantization is asymmetric.")
        return read_table(self.checked, f"{name}.output_scale", offset, self.config.num_kv_heads, self.config.head_dim)


def _refuse_other_features(table: Mapping[str, Any], where: str) -> None:
    export = table.get("export") or {}
    if export.get("weight_format", "real_quantized") != "real_quantized":
        raise UnsupportedError(f"{where}: weight_format {export['weight_format']!r:.80} is not supported.")
    if table.get("softmax_quant_spec") is not None:
        raise UnsupportedError(f"{where}: a quantized softmax is not supported.")
    for algorithm in _list(table.get("algo_config")):
        if isinstance(algorithm, Mapping) and algorithm.get("online_r1_rotation"):
            raise UnsupportedError(f"{where}: rotations at run time are not supported.")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _spec(table: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The quantization of a linear: by its name, or by its class, or that of all; None: it is excluded."""
    if any(fnmatchcase(name, pattern) for pattern in table.get("exclude") or []):
        return None
    for pattern, spec in (table.get("layer_quant_config") or {}).items():
        if fnmatchcase(name, pattern):
            return _mapping(spec)
    by_class = table.get("layer_type_quant_config") or {}
    for kind, spec in by_class.items():
        if kind.rpartition(".")[2] in ("Linear", "nn.Linear"):
            return _mapping(spec)
    return _mapping(table.get("global_quant_config"))


def _mapping(spec: Any) -> Mapping[str, Any] | None:
    return spec if isinstance(spec, Mapping) else None


def _check_int8(spec: Any, where: str, schemes: tuple[str, ...]) -> None:
    """Raises: UnsupportedError: a quantization has another type than int8, or scales of another granularity."""
    if not isinstance(spec, Mapping):
        raise UnsupportedError(f"{where}: several quantizations of one tensor are not supported.")
    if spec.get("dtype") != "int8":
        raise UnsupportedError(
            f"{where}: {str(spec.get('dtype')).upper():.40} is not supported, only INT8. Start from the float model."
        )
    if spec.get("qscheme") not in schemes or spec.get("group_size") not in (None, -1):
        raise UnsupportedError(f"{where}: scales {spec.get('qscheme')!r:.40} are not supported.")
