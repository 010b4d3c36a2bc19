"""faquant convert"""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import UsageError
from ..progress import progress_bar
from .interrupts import raise_on_signals
from .options import check_checkpoints


class Target(str, Enum):
    faquant = "faquant"
    mindie = "mindie"
    c8 = "c8"
    manual = "manual"
    compressed_tensors = "compressed-tensors"
    gguf = "gguf"
    ort_genai = "ort-genai"
    hf = "hf"


class KvCache(str, Enum):
    int8 = "int8"
    none = "none"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def convert(
    source: Annotated[Path, typer.Argument(help="Quantized directory, or a GGUF file for hf.", metavar="DIR|GGUF")],
    to: Annotated[
        Target,
        typer.Option(
            help="faquant: faquant's format. mindie: for MindIE, as msModelSlim writes it. c8: the same with a C8 "
            "cache, also for vllm-ascend. manual: with the manual's tables q_scale, k_scale, v_scale [heads, "
            "head_dim]. compressed-tensors: for transformers and vLLM. gguf: a file for llama.cpp. ort-genai: for "
            "onnxruntime-genai's builder. hf: a float Hugging Face directory."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory to write; for gguf, a file.", metavar="OUT")
    ],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights for hf; float32 is exact.", show_default="float32")
    ] = None,
    kv_cache: Annotated[
        KvCache | None,
        typer.Option(
            help="For compressed-tensors: none leaves the tables of K and V out, as stock vLLM needs it.",
            show_default="int8",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it is a model directory, or a GGUF file.")
    ] = False,
) -> None:
    """Convert a quantized directory of any supported tool for an engine, or a GGUF file for quantize."""
    if kv_cache is not None and to is not Target.compressed_tensors:
        raise UsageError("--kv-cache is for --to compressed-tensors only.")
    if to is Target.hf:
        _from_gguf(source, output, (dtype or Dtype.float32).value, overwrite)
        return
    if dtype is not None:
        raise UsageError(f"--dtype is for --to hf only; --to {to.value} keeps the types of the directory.")
    check_checkpoints(source)
    raise_on_signals()
    for note in _notes(source, output, to, (kv_cache or KvCache.int8).value, overwrite):
        print(note, file=sys.stderr)
    print(f"{output}: converted for {to.value}.", file=sys.stderr)


def _notes(source: Path, output: Path, to: Target, kv_cache: Literal["int8", "none"], overwrite: bool) -> list[str]:
    """Convert a directory; what differs, as sentences."""
    # They load torch, so the directory was checked first.
    if to is Target.faquant:
        from ..quantization.convert import convert_to_faquant

        convert_to_faquant(source, output, overwrite)
        return []
    if to is Target.gguf:
        from .. import api

        return api.export_gguf(source, output, overwrite=overwrite)
    if to is Target.ort_genai:
        from ..quantization.exports.ort_genai import export_ort_genai

        return export_ort_genai(source, output, overwrite)
    if to is Target.compressed_tensors:
        from ..quantization.exports.compressed_tensors import export_compressed_tensors

        return export_compressed_tensors(source, output, overwrite, kv_cache)
    from ..quantization.mindie.convert import Tables, convert_to_mindie

    tables: dict[Target, Tables] = {Target.mindie: "any", Target.manual: "manual", Target.c8: "c8"}
    return convert_to_mindie(source, output, overwrite, tables[to])


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
