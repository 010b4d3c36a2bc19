"""faquant inspect"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import load_config
from ..checkpoint.side_files import has_side_file
from .console import print_json

if TYPE_CHECKING:
    from ..model.inspection import Inspection


def inspect(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how each module is quantized, the size of each part, and the cache size per token."""
    load_config(directory)
    from ..model.inspection import inspect as run  # slow to import, so check the directory first
    from ..text.tokenizer import Tokenizer

    if has_side_file(directory, "tokenizer.json"):
        Tokenizer.from_directory(directory)  # nothing of it is shown, but a damaged one is an error
    inspection = run(directory)
    if json:
        print_json(inspection.to_json())
    else:
        _print(inspection)


def _print(inspection: "Inspection") -> None:
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
        f"KV cache: {ours:,} bytes per token; bf16 needs {bf16:,}, so {bf16 / ours:.2f} times as many tokens fit.",
        highlight=False,
    )
