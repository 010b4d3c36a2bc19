"""faquant convert"""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..progress import progress_bar
from .interrupts import raise_on_signals
from .options import check_checkpoints


class Target(str, Enum):
    faquant = "faquant"
    mindie = "mindie"
    manual = "manual"
    hf = "hf"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def convert(
    source: Annotated[Path, typer.Argument(help="Quantized directory, or a GGUF file for hf.", metavar="DIR|GGUF")],
    to: Annotated[
        Target,
        typer.Option(
            help="faquant: faquant's format. mindie: for MindIE, as msModelSlim writes it. manual: the same with the "
            "manual's tables q_scale, k_scale, v_scale [heads, head_dim]. hf: a float Hugging Face directory."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="OUT")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights for hf; float32 is exact.", show_default="float32")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a model directory.")] = False,
) -> None:
    """Convert a quantized directory of any supported tool, for faquant or for MindIE, or a GGUF file for quantize."""
    if to is Target.hf:
        _from_gguf(source, output, (dtype or Dtype.float32).value, overwrite)
        return
    if dtype is not None:
        raise UsageError(f"--dtype is for --to hf only; --to {to.value} keeps the types of the directory.")
    check_checkpoints(source)
    # Loads torch, so check the directory first.
    from ..quantization.convert import convert_to_faquant
    from ..quantization.mindie.convert import convert_to_mindie

    raise_on_signals()
    if to is Target.faquant:
        convert_to_faquant(source, output, overwrite)
    else:
        for note in convert_to_mindie(source, output, overwrite, manual=to is Target.manual):
            print(note, file=sys.stderr)
    print(f"{output}: converted for {to.value}.", file=sys.stderr)


def _from_gguf(source: Path, output: Path, dtype: str, overwrite: bool) -> None:
    if source.is_dir():
        raise UsageError(
            f"{source} is a directory. --to hf takes a GGUF file; quantize takes a Hugging Face directory."
        )
    from ..formats.gguf.convert import convert_gguf

    raise_on_signals()
    with progress_bar("dequantizing tensors") as progress:
        unrecorded = convert_gguf(source, output, dtype, progress, overwrite)
    if unrecorded:
        print(
            f"{source} cannot tell whether the original has {', '.join(unrecorded)}. If the original's config.json "
            f"sets one of them, use that file instead of {output / 'config.json'}.",
            file=sys.stderr,
        )
    print(f"{output}: {dtype} weights. Next: faquant quantize {output} -o OUT", file=sys.stderr)
