"""faquant inspect"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..config import load_config
from ..errors import UsageError
from .console import print_json

if TYPE_CHECKING:
    from ..model.inspection import Inspection

_POWERS = {unit: power for power, unit in enumerate("KMGT", 1)}
_UNITS = {"": 1} | {u: 1000**p for u, p in _POWERS.items()} | {f"{u}I": 1024**p for u, p in _POWERS.items()}


def inspect(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    memory: Annotated[
        str | None, typer.Option(help="Say how many tokens of cache fit, such as 24GiB.", metavar="SIZE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is quantized how, how many bytes each part takes, and what the cache takes for each token."""
    room = parse_size(memory) if memory is not None else None
    load_config(directory)
    from ..model.inspection import inspect as run  # loads torch: a wrong directory or option is told before that

    inspection = run(directory)
    if json:
        value = inspection.to_json()
        if room is not None:
            value["context_for_memory"] = inspection.context_for(room)
        print_json(value)
        return
    _print(inspection, memory, room)


def parse_size(text: str) -> int:
    """Bytes of a size such as `24GiB`, `500MB` or `1000`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?I?)B?", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"{text!r} is no size; write one such as 24GiB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def _print(inspection: "Inspection", memory: str | None, room: int | None) -> None:
    config, description = inspection.config, inspection.description
    console = Console()
    recipe = inspection.metadata.recipe.name if inspection.metadata else "-"
    console.print(
        f"{inspection.directory}: {config.model_type}, {config.num_layers} layers, heads "
        f"{config.num_heads}/{config.num_kv_heads} of {config.head_dim}, context {inspection.max_position:,} tokens; "
        f"model_quant_type {description.model_quant_type if description else 'FLOAT'}, "
        f"fa_quant_type {description.fa_quant_type if description else None}, recipe {recipe}",
        highlight=False,
        soft_wrap=True,
    )
    modules = Table("module", "types")
    for module, types in inspection.types_by_module.items():
        modules.add_row(module, ", ".join(f"{kind} × {count}" for kind, count in types.items()))
    console.print(modules)
    parts = Table("part")
    parts.add_column("bytes", justify="right")
    for part, size in inspection.bytes_by_part.items():
        parts.add_row(part, f"{size:,}")
    parts.add_row("all", f"{inspection.weight_bytes:,}")
    console.print(parts)
    for kind, layers in inspection.kv_schemes.items():
        console.print(f"KV cache of {layers} layers: {kind}", highlight=False)
    ours, bf16 = inspection.kv_bytes_per_token, inspection.kv_bytes_per_token_bf16
    console.print(
        f"KV cache: {ours:,} bytes a token; bf16 takes {bf16:,}, so {bf16 / ours:.2f} times the tokens fit.",
        highlight=False,
    )
    if room is not None:
        console.print(
            f"In {memory}, beside the weights: {inspection.context_for(room):,} tokens of cache in all.",
            highlight=False,
        )
