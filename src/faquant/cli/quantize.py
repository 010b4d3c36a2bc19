"""faquant quantize"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..config import load_config
from .console import progress_bar

FEW_TOKENS = 1000


def quantize(
    model: Annotated[Path, typer.Argument(help="Hugging Face directory of the float model.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="OUT")],
    recipe: Annotated[
        str,
        typer.Option(help="default, static, mindie[-plain], attention-only, or a JSON file.", metavar="RECIPE"),
    ] = "default",
    calibration: Annotated[
        str, typer.Option(help="builtin, or a .txt or .jsonl file.", metavar="FILE|builtin")
    ] = "builtin",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a model directory.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run has left, instead of going on.")
    ] = False,
) -> None:
    """Turn a Hugging Face checkpoint into one with 8-bit attention and 8-bit linears."""
    started = time.monotonic()
    load_config(model)
    from .. import api  # loads torch: a wrong directory or option is told before that

    with progress_bar("quantizing layers") as progress:
        tokens = api.quantize(
            model, output, recipe, calibration, overwrite=overwrite, restart=restart, progress=progress
        )
    if tokens < FEW_TOKENS:
        print(f"Only {tokens:,} tokens of calibration: thousands, of every kind you serve, do better.", file=sys.stderr)
    print(
        f"{output}: recipe {recipe}, calibrated on {tokens:,} tokens, {time.monotonic() - started:.0f} s. "
        f"What it cost: faquant evaluate {output} --against {model}",
        file=sys.stderr,
    )
