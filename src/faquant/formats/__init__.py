"""Checkpoints of all formats: the registry, and how a directory is opened."""

from pathlib import Path

from ..errors import UnsupportedError
from .base import CheckpointFormat, Opened, Source
from .faquant.format import FaquantFormat
from .float import FloatFormat
from .msmodelslim.format import MsModelSlimFormat

FORMATS: tuple[CheckpointFormat, ...] = (FaquantFormat(), MsModelSlimFormat(), FloatFormat())
"""The first that detects itself in a directory opens it."""


def open_checkpoint(directory: Path) -> Opened:
    """Open a float or quantized directory.

    Raises:
        CheckpointError: files are missing, damaged, or contradict one another.
        UnsupportedError: the model is of a kind that this program does not run.
    """
    source = Source.of(directory)
    return format_of(source).open(source)


def format_of(source: Source) -> CheckpointFormat:
    """The format of a directory. Raises: UnsupportedError: none of those that we read."""
    for format in FORMATS:
        if format.detect(source):
            return format
    raise UnsupportedError(
        f"{source.directory / 'config.json'}: the model is quantized already, by {source.config.quant_method}. "
        "Start from the checkpoint in bfloat16, float16 or float32."
    )
