"""Checkpoints of NVIDIA ModelOpt.

Arithmetic (nvidia-modelopt 0.47): x8 = clamp(round(x · pre_quant_scale / input_scale)), x = x8 · input_scale. With
SmoothQuant, `pre_quant_scale` exists; the name of the algorithm is the same without it.
"""

from fnmatch import fnmatchcase
from typing import Any

from ..checkpoint.files import list_names, read_object
from ..checkpoint.json_object import JsonObject, shown
from ..errors import CheckpointError, UnsupportedError
from .base import Opened, Source
from .int8_linears import Names, OpenedInt8

SEPARATE = "hf_quant_config.json"
"""Where older versions describe the quantization instead of config.json."""
W8A8 = "W8A8_SQ_PER_CHANNEL"
SMOOTHED_TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


class ModelOptFormat:
    """The format of NVIDIA ModelOpt."""

    name = "modelopt"

    def detect(self, source: Source) -> bool:
        if source.quantization.raw:
            return source.quantization.raw.get("quant_method") == self.name
        return source.description is None and SEPARATE in list_names(source.directory)

    def open(self, source: Source) -> Opened:
        return OpenedModelOpt(source)


class OpenedModelOpt(OpenedInt8):
    """A checkpoint of NVIDIA ModelOpt."""

    format = ModelOptFormat.name

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        table = _description(source)
        algorithm, cache = _types(table)
        if algorithm != W8A8:
            raise UnsupportedError(f"{table.source}: quant_algo {shown(algorithm)} is not supported, only {W8A8}.")
        if cache is not None:
            raise UnsupportedError(f"{table.source}: a cache in {shown(cache)} is not supported in this format.")
        excluded = table.texts("ignore", []) or table.texts("exclude_modules", [])
        for name in self.config.linears:
            if f"{name}.weight" in self.files and not any(_matches(name, pattern) for pattern in excluded):
                multiplier = f"{name}.pre_quant_scale"
                self.linears[name] = Names(
                    f"{name}.weight_scale",
                    f"{name}.input_scale",
                    input_multiplier=multiplier if multiplier in self.files else None,
                )
        self._check_multipliers()
        self.check()

    def _check_multipliers(self) -> None:
        """Linears with the same input are smoothed together, so one without a multiplier has lost it."""
        for layer in range(self.config.num_layers):
            for group in SMOOTHED_TOGETHER:
                names = [f"model.layers.{layer}.{part}" for part in group]
                found = [self.linears[name].input_multiplier is not None for name in names if name in self.linears]
                if any(found) and not all(found):
                    raise CheckpointError(f"Some of {', '.join(names)} have a pre_quant_scale, and some have none.")


def _description(source: Source) -> JsonObject:
    """The description of the quantization, in config.json or beside it.

    Raises:
        CheckpointError: it is not an object, or the two contradict each other.
    """
    beside = None
    if SEPARATE in list_names(source.directory):
        whole = JsonObject(read_object(source.directory, SEPARATE), str(source.directory / SEPARATE))
        beside = whole.object("quantization")
    table = source.quantization
    if not table.raw and beside is not None:
        return beside
    if beside is not None and _types(table) != _types(beside):
        raise CheckpointError(f"{table.source} and {beside.source} name other quantizations. Remove the wrong one.")
    return table


def _types(table: JsonObject) -> tuple[Any, Any]:
    """The algorithm of the linears, and that of the cache."""
    return table.raw.get("quant_algo"), table.raw.get("kv_cache_quant_algo") or table.raw.get("kv_cache_scheme")


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means this linear, or a module that contains it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
