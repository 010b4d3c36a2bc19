"""The registry of checkpoint formats, and opening directories of any format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.json_object import shown
from ..errors import UnsupportedError
from .base import CheckpointFormat, Opened, Source
from .compressed_tensors import CompressedTensorsFormat
from .faquant.format import FaquantFormat
from .float import FloatFormat
from .modelopt import ModelOptFormat
from .msmodelslim.format import MsModelSlimFormat
from .quark import QuarkFormat

FORMATS: tuple[CheckpointFormat, ...] = (
    FaquantFormat(),
    MsModelSlimFormat(),
    CompressedTensorsFormat(),
    QuarkFormat(),
    ModelOptFormat(),
    FloatFormat(),
)
"""The first format that detects itself in a directory opens it."""


def open_checkpoint(directory: Path) -> Opened:
    """Open a float or quantized directory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: this kind of model is not supported.
    """
    source = Source.of(directory)
    format = format_of(source)
    if source.config.family.fused and not isinstance(format, FaquantFormat | FloatFormat):
        raise UnsupportedError(
            f"{directory}: {format.name} checkpoints of {source.config.model_type}, which stores q, k and v as one "
            "weight, are not supported. Start from the float checkpoint."
        )
    opened = format.open(source)
    opened.check_types()
    return opened


def format_of(source: Source) -> CheckpointFormat:
    """The format of a directory.

    Raises:
        CheckpointError: config.json's description of a quantization is not an object.
        UnsupportedError: the format is not supported.
    """
    for format in FORMATS:
        if format.detect(source):
            return format
    method = _named(source.quantization.raw)
    supported = ", ".join(format.name for format in FORMATS if not isinstance(format, FloatFormat))
    raise UnsupportedError(
        f"{source.directory / 'config.json'}: the model is quantized already, by {method}, which is not supported; "
        f"these are, in int8: {supported}. Start from the checkpoint in bfloat16, float16 or float32."
    )


def _named(table: Mapping[str, Any]) -> str:
    """The method of a quantization_config with its number of bits, for an error."""
    bits = next((table[key] for key in ("bits", "w_bit", "weight_bits") if isinstance(table.get(key), int)), None)
    return f"{table.get('quant_method')!r:.80}{'' if bits is None else f' with {shown(bits)} bits'}"
