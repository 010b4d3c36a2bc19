"""faquant calibrate"""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..progress import progress_bar
from .interrupts import raise_on_signals
from .options import check_checkpoints


class KvScale(str, Enum):
    token = "token"
    channel = "channel"
    head = "head"


def calibrate(
    directory: Annotated[Path, typer.Argument(help="Quantized directory of any supported tool.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="OUT")],
    kv_scale: Annotated[
        KvScale, typer.Option(help="Scales of K and V: one per token and head, or calibrated per channel or head.")
    ] = KvScale.token,
    calibration: Annotated[
        str, typer.Option(help="builtin, or a .txt or .jsonl file.", metavar="FILE|builtin")
    ] = "builtin",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a model directory.")] = False,
) -> None:
    """Calibrate new tables of q, K and V for a quantized checkpoint, whose linears stay as they are."""
    check_checkpoints(directory)
    from .. import api  # loads torch, so check the directory first

    raise_on_signals()
    with progress_bar("calibrating") as progress:
        tokens = api.calibrate(directory, output, kv_scale.value, calibration, overwrite=overwrite, progress=progress)
    print(
        f"{output}: 8-bit attention, calibrated on {tokens:,} tokens; the linears are those of {directory}.",
        file=sys.stderr,
    )
