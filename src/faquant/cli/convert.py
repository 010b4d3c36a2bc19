"""faquant convert"""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..config import load_config


class Target(str, Enum):
    mindie = "mindie"


def convert(
    directory: Annotated[Path, typer.Argument(help="Quantized directory.", metavar="OUT")],
    to: Annotated[Target, typer.Option(help="The runtime that is to load it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="DIR")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR if it is a model directory.")] = False,
) -> None:
    """Rewrite a quantized directory for another runtime, where its recipe allows it."""
    load_config(directory)
    from ..quantization.convert import convert_to_mindie  # loads torch: a wrong directory is told before that

    convert_to_mindie(directory, output, overwrite)
    print(f"{output}: written for {to.value}.", file=sys.stderr)
