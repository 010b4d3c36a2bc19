"""The registry of checkpoint formats, and opening directories of any format."""

from pathlib import Path

from ..errors import UnsupportedError
from .base import CheckpointFormat, Opened, Source
from .faquant.format import FaquantFormat
from .float import FloatFormat
from .msmodelslim.format import MsModelSlimFormat

FORMATS: tuple[CheckpointFormat, ...] = (FaquantFormat(), MsModelSlimFormat(), FloatFormat())
"""The first format that detects itself in a directory opens it."""


def open_checkpoint(directory: Path) -> Opened:
    """Open a float or quantized directory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: this kind of model is not supported.
    """
    source = Source.of(directory)
    return format_of(source).open(source)


def format_of(source: Source) -> CheckpointFormat:
    """The format of a directory. Raises: UnsupportedError: the format is not supported."""
    for format in FORMATS:
        if format.detect(source):
            return format
    raise UnsupportedError(
        f"{source.directory / 'config.json'}: the model is quantized already, by {source.config.quant_method}. "
        "Start from the checkpoint in bfloat16, float16 or float32."
    )
