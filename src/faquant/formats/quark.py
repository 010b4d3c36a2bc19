"""Checkpoints of AMD Quark.

Arithmetic (amd-quark 0.13): x8 = clamp(round(x / scale) + zero_point), x = (x8 - zero_point) · scale. Its tables of K
are for k_proj's output before RoPE, unless `kv_cache_post_rope` is true.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..checkpoint.json_object import JsonObject, shown
from ..errors import UnsupportedError
from .base import Opened, Source
from .int8_linears import Names, OpenedInt8
from .kv_tables import read_table, scheme_of

KV_PROJECTIONS = ("k_proj", "v_proj")


class QuarkFormat:
    """The format of AMD Quark."""

    name = "quark"

    def detect(self, source: Source) -> bool:
        return source.quantization.raw.get("quant_method") == self.name

    def open(self, source: Source) -> Opened:
        return OpenedQuark(source)


class OpenedQuark(OpenedInt8):
    """A checkpoint of AMD Quark."""

    format = QuarkFormat.name
    input_steps = 127.5  # a scale is half the range divided by half of 255 steps

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        table = source.quantization
        _refuse_other_features(table)
        outputs: dict[str, JsonObject] = {}
        for name in self.config.linears:
            spec = _spec(table, name)
            if spec is None:
                continue
            if spec.raw.get("bias") is not None:
                raise UnsupportedError(f"{spec.source}: quantized biases are not supported.")
            output, weight = _quantization(spec, "output_tensors"), _quantization(spec, "weight")
            inputs = _quantization(spec, "input_tensors")
            if output is not None:
                _check_output(name, output)
                outputs[name] = output
            if weight is None and inputs is not None:
                raise UnsupportedError(f"{spec.source}: quantized inputs of float weights are not supported.")
            if weight is not None and f"{name}.weight" in self.files:
                self.linears[name] = self._linear_names(name, weight, inputs, spec.source)
        pairs = {name: self._table_names(name, spec) for name, spec in outputs.items()}
        self.check(name for pair in pairs.values() for name in pair if name is not None)
        if outputs:
            self._read_schemes(pairs, table.flag("kv_cache_post_rope", False), table.source)

    def _linear_names(self, name: str, weight: JsonObject, inputs: JsonObject | None, where: str) -> Names:
        """The tensors of a linear; `where` is where both quantizations are described."""
        _check_int8(weight, ("per_tensor", "per_channel"))
        if not weight.flag("symmetric", True):
            raise UnsupportedError(f"{where}: weights with zero points are not supported.")
        if inputs is None:
            raise UnsupportedError(f"{where}: only the weights are quantized (W8A16), which has no int8 kernel.")
        scale = f"{name}.weight_scale"
        self.offset(f"{name}.weight_zero_point", symmetric=True)
        symmetric = inputs.flag("symmetric", True)
        if not inputs.flag("is_dynamic", False):
            _check_int8(inputs, ("per_tensor",))
            return Names(scale, f"{name}.input_scale", self.offset(f"{name}.input_zero_point", symmetric))
        _check_int8(inputs, ("per_token", "per_channel"))
        if inputs.text("qscheme") == "per_channel" and inputs.raw.get("ch_axis") != 1:  # of [batch, tokens, channels]
            raise UnsupportedError(f"{where}: dynamic inputs must have one scale per token.")
        if not symmetric:
            raise UnsupportedError(f"{where}: dynamic inputs with zero points are not supported.")
        return Names(scale)

    def _table_names(self, name: str, spec: JsonObject) -> tuple[str, str | None]:
        """The names of the scale and the zero point of an output; None: there is none."""
        return f"{name}.output_scale", self.offset(f"{name}.output_zero_point", spec.flag("symmetric", True))

    def _read_schemes(self, pairs: Mapping[str, tuple[str, str | None]], after_rope: bool, where: str) -> None:
        heads, dim = self.config.num_kv_heads, self.config.head_dim
        for layer in range(self.config.num_layers):
            found = [f"model.layers.{layer}.self_attn.{part}" for part in KV_PROJECTIONS]
            found = [name for name in found if name in pairs]
            if len(found) == 1:
                raise UnsupportedError(f"{where}: the cache of layer {layer} is not quantized for both K and V.")
            if found:
                # K's values are checked, even if they are not used.
                k, v = (read_table(self.checked, *pairs[name], heads, dim) for name in found)
                self.schemes[layer] = scheme_of(self.config, k if after_rope else None, v)
        if not after_rope:
            self.notes.append(
                "The tables of K are for K before RoPE, which a cache after RoPE cannot use: K has a scale per token "
                "and head instead. The tables of V are used."
            )


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
        if isinstance(algorithm, Mapping) and _rotates_at_run_time(algorithm):
            raise UnsupportedError(f"{table.source}: rotations at run time are not supported.")


def _rotates_at_run_time(algorithm: Mapping[str, Any]) -> bool:
    """Whether an algorithm rotates q and K (R3), the input of down_proj (R4), or else what no weight contains."""
    rotates_all = algorithm.get("name") == "quarot"  # unless it says otherwise
    online = any(algorithm.get(key, rotates_all) for key in ("r3", "r4"))
    return online or any(algorithm.get(key) for key in ("online_r1_rotation", "trainable", "train_smooth"))


def _spec(table: JsonObject, name: str) -> JsonObject | None:
    """The quantization of a linear: by its name, or by its class, or that of all; None: it is excluded."""
    if any(fnmatchcase(name, pattern) for pattern in table.texts("exclude", [])):
        return None
    by_name, by_class = table.object("layer_quant_config"), table.object("layer_type_quant_config")
    if name in by_name.raw:
        return by_name.object(name)
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
