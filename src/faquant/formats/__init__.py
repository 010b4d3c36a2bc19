"""Checkpoints of all formats: the registry, and how a directory is opened."""

from pathlib import Path

from ..errors import UnsupportedError
from .base import Format, Opened, Source
from .faquant.format import FaquantFormat
from .float import FloatFormat
from .msmodelslim.format import MsModelSlimFormat

FORMATS: tuple[Format, ...] = (FaquantFormat(), MsModelSlimFormat(), FloatFormat())
"""The first that detects itself in a directory opens it."""


def open_checkpoint(directory: Path) -> Opened:
    """Open a float or quantized directory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: the model is of a kind that this program does not run.
    """
    source = Source.of(directory)
    for format in FORMATS:
        if format.detect(source):
            return format.open(source)
    method = source.config.quant_method
    raise UnsupportedError(
        f"{directory / 'config.json'}: the model is quantized already, by {method}. "
        "Start from the checkpoint in bfloat16, float16 or float32."
    )
