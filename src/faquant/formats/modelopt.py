"""Checkpoints of NVIDIA ModelOpt.

Arithmetic (nvidia-modelopt 0.47): x8 = clamp(round(x · pre_quant_scale / input_scale)), x = x8 · input_scale. With
SmoothQuant, `pre_quant_scale` exists; the name of the algorithm is the same without it.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from ..checkpoint.files import list_names, read_object
from ..checkpoint.json_object import JsonObject, shown
from ..errors import UnsupportedError
from ..kernels.tables import LinearTable
from .base import Opened, Source, check_tensors, float_table
from .int8_linears import Names, check_linear, read_linear

SEPARATE = "hf_quant_config.json"
"""Where older versions describe the quantization instead of config.json."""
W8A8 = "W8A8_SQ_PER_CHANNEL"


class ModelOptFormat:
    """The format of NVIDIA ModelOpt."""

    name = "modelopt"

    def detect(self, source: Source) -> bool:
        if source.quantization.raw:
            return source.quantization.raw.get("quant_method") == self.name
        return source.description is None and SEPARATE in list_names(source.directory)

    def open(self, source: Source) -> Opened:
        return OpenedModelOpt(source)


class OpenedModelOpt(Opened):
    """A checkpoint of NVIDIA ModelOpt."""

    format = ModelOptFormat.name

    def __init__(self, source: Source) -> None:
        super().__init__(source, source.open_files())
        table = _description(source)
        algorithm = table.raw.get("quant_algo")
        if algorithm != W8A8:
            raise UnsupportedError(f"{table.source}: quant_algo {shown(algorithm)} is not supported, only {W8A8}.")
        cache = table.raw.get("kv_cache_quant_algo") or table.raw.get("kv_cache_scheme")
        if cache is not None:
            raise UnsupportedError(f"{table.source}: a cache in {shown(cache)} is not supported, only INT8.")
        excluded = table.texts("ignore", []) or table.texts("exclude_modules", [])
        self._names: dict[str, Names] = {}
        for name in self.config.linears:
            if f"{name}.weight" not in self.files or any(_matches(name, pattern) for pattern in excluded):
                continue
            multiplier = f"{name}.pre_quant_scale"
            self._names[name] = Names(
                f"{name}.weight_scale",
                f"{name}.input_scale",
                input_multiplier=multiplier if multiplier in self.files else None,
            )
        self.ignored = check_tensors(self.config, self.files, self._tensor_names())
        for name, names in self._names.items():
            check_linear(self.checked, self.config, name, names)

    def linear_type(self, name: str) -> str:
        return "W8A8" if name in self._names else "FLOAT"

    def linear(self, name: str) -> LinearTable:
        if name in self._names:
            return read_linear(self.checked, self.config, name, self._names[name])
        return float_table(self.checked, self.config, name)

    def _tensor_names(self) -> Iterator[str]:
        for names in self._names.values():
            yield from (name for name in names if name is not None)


def _description(source: Source) -> JsonObject:
    """The description of the quantization, in config.json or beside it. Raises: CheckpointError: it is no object."""
    if source.quantization.raw:
        return source.quantization
    return JsonObject(read_object(source.directory, SEPARATE), str(source.directory / SEPARATE)).object("quantization")


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means this linear, or a module that contains it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
