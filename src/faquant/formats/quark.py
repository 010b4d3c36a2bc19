"""Checkpoints of AMD Quark.

Arithmetic (amd-quark 0.13): x8 = clamp(round(x / scale) + zero_point), x = (x8 - zero_point) · scale. Its tables of K
are for k_proj's output before RoPE, unless `kv_cache_post_rope` is true.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from ..checkpoint.json_object import JsonObject, shown
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
        return source.quantization.raw.get("quant_method") == self.name

    def open(self, source: Source) -> Opened:
        return OpenedQuark(source)


class OpenedQuark(Opened):
    """A checkpoint of AMD Quark."""

    format = QuarkFormat.name
    input_steps = 127.5  # a scale is half the range divided by half of 255 steps

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        table = source.quantization
        _refuse_other_features(table)
        self._where = table.source
        self._names: dict[str, Names] = {}
        outputs: dict[str, JsonObject] = {}
        for name in self.config.linears:
            spec = _spec(table, name)
            if spec is None:
                continue
            output, weight = _quantization(spec, "output_tensors"), _quantization(spec, "weight")
            if output is not None:
                _check_output(name, output)
                outputs[name] = output
            if weight is not None and f"{name}.weight" in self.files:
                self._names[name] = _linear_names(name, weight, _quantization(spec, "input_tensors"), spec.source)
        self.ignored = check_tensors(self.config, self.files, self._tensor_names(outputs))
        for name, names in self._names.items():
            check_linear(self.checked, self.config, name, names)
            zero = f"{name}.weight_zero_point"
            if zero in self.files and self.checked.get(zero).any():
                raise UnsupportedError(
                    f"{zero} is not zero: the weights are quantized asymmetrically, which has no kernel."
                )
        if outputs:
            self._read_schemes(outputs, table.flag("kv_cache_post_rope", False))

    def linear_type(self, name: str) -> str:
        names = self._names.get(name)
        return "FLOAT" if names is None else "W8A8_DYNAMIC" if names.input_scale is None else "W8A8"

    def linear(self, name: str) -> LinearTable:
        if name in self._names:
            return read_linear(self.checked, self.config, name, self._names[name], self.input_steps)
        return float_table(self.checked, self.config, name)

    def _tensor_names(self, outputs: Iterable[str]) -> Iterator[str]:
        for name in self._names:
            yield from (f"{name}.{part}" for part in LINEAR_PARTS)
        for name in outputs:
            yield from (f"{name}.output_scale", f"{name}.output_zero_point")

    def _read_schemes(self, outputs: Mapping[str, JsonObject], after_rope: bool) -> None:
        for layer in range(self.config.num_layers):
            prefix = f"model.layers.{layer}.self_attn."
            k, v = (f"{prefix}{part}" for part in KV_PROJECTIONS)
            if not {k, v} <= outputs.keys():
                raise UnsupportedError(f"{self._where}: the cache of layer {layer} is not quantized for both K and V.")
            table = self._table(k, outputs[k])  # its values are checked, even if they are not used
            self.schemes[layer] = scheme_of(self.config, table if after_rope else None, self._table(v, outputs[v]))
        if not after_rope:
            self.notes.append(
                "The tables of K are for K before RoPE, which a cache after RoPE cannot use: K has a scale per token "
                "and head instead. The tables of V are used."
            )

    def _table(self, name: str, spec: JsonObject) -> StaticTable:
        offset = f"{name}.output_zero_point"
        if not spec.flag("symmetric", True) and offset not in self.files:
            raise CheckpointError(f"The checkpoint has no tensor {offset}, but its quantization is asymmetric.")
        return read_table(self.checked, f"{name}.output_scale", offset, self.config.num_kv_heads, self.config.head_dim)


def _linear_names(name: str, weight: JsonObject, inputs: JsonObject | None, where: str) -> Names:
    """The tensors of a linear; `where` is where both quantizations are described."""
    _check_int8(weight, ("per_tensor", "per_channel"))
    if not weight.flag("symmetric", True):
        raise UnsupportedError(f"{where}: weights with zero points are not supported.")
    if inputs is None:
        raise UnsupportedError(f"{where}: only the weights are quantized (W8A16), which has no int8 kernel.")
    if not inputs.flag("is_dynamic", False):
        _check_int8(inputs, ("per_tensor",))
        return Names(f"{name}.weight_scale", f"{name}.input_scale", f"{name}.input_zero_point")
    _check_int8(inputs, ("per_token", "per_channel"))
    if inputs.text("qscheme") == "per_channel" and inputs.raw.get("ch_axis") != 1:  # of [batch, tokens, channels]
        raise UnsupportedError(f"{where}: dynamic inputs must have one scale per token.")
    if not inputs.flag("symmetric", True):
        raise UnsupportedError(f"{where}: dynamic inputs with zero points are not supported.")
    return Names(f"{name}.weight_scale")


def _check_output(name: str, spec: JsonObject) -> None:
    if not name.endswith(KV_PROJECTIONS):
        raise UnsupportedError(
            f"{spec.source}: the output of {name} is quantized, which is supported for k_proj and v_proj only."
        )
    _check_int8(spec, ("per_tensor", "per_channel"))
    if spec.flag("is_dynamic", False):
        raise UnsupportedError(f"{spec.source}: dynamic scales of the cache are not supported.")


def _refuse_other_features(table: JsonObject) -> None:
    stored = table.object("export").text("weight_format", "real_quantized")
    if stored != "real_quantized":
        raise UnsupportedError(f"{table.source}: weight_format {shown(stored)} is not supported.")
    if table.raw.get("softmax_quant_spec") is not None:
        raise UnsupportedError(f"{table.source}: a quantized softmax is not supported.")
    algorithms = table.raw.get("algo_config")
    for algorithm in algorithms if isinstance(algorithms, list) else [algorithms]:
        if isinstance(algorithm, Mapping) and algorithm.get("online_r1_rotation"):
            raise UnsupportedError(f"{table.source}: rotations at run time are not supported.")


def _spec(table: JsonObject, name: str) -> JsonObject | None:
    """The quantization of a linear: by its name, or by its class, or that of all; None: it is excluded."""
    if any(fnmatchcase(name, pattern) for pattern in table.texts("exclude", [])):
        return None
    by_name, by_class = table.object("layer_quant_config"), table.object("layer_type_quant_config")
    for pattern in by_name.raw:
        if fnmatchcase(name, pattern):
            return by_name.object(pattern)
    for kind in by_class.raw:
        if kind.rpartition(".")[2] == "Linear":
            return by_class.object(kind)
    return table.object("global_quant_config")


def _quantization(spec: JsonObject, key: str) -> JsonObject | None:
    """How a part of a linear is quantized; None: it is not. Raises: UnsupportedError: in several ways at once."""
    if isinstance(spec.raw.get(key), list):
        raise UnsupportedError(f"{spec.source}, {key}: several quantizations of one tensor are not supported.")
    return spec.optional_object(key)


def _check_int8(spec: JsonObject, schemes: tuple[str, ...]) -> None:
    """Raises: UnsupportedError: a quantization has another type than int8, or scales of another granularity."""
    kind = spec.text("dtype")
    if kind != "int8":
        raise UnsupportedError(
            f"{spec.source}: {shown(kind)[1:-1].upper()} is not supported, only INT8. Start from the float model."
        )
    if spec.text("qscheme") not in schemes or spec.raw.get("group_size") not in (None, -1):
        raise UnsupportedError(f"{spec.source}: scales {shown(spec.text('qscheme'))} are not supported.")
