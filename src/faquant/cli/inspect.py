"""faquant inspect"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..checkpoint.model_config import load_config
from ..checkpoint.side_files import has_side_file
from ..progress import progress_bar
from .console import print_json
from .interrupts import raise_on_signals

if TYPE_CHECKING:
    from ..evaluation.saturation import Fit
    from ..model.inspection import Inspection


def inspect(
    directory: Annotated[Path, typer.Argument(help="Quantized or float directory.", metavar="OUT")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Run the built-in texts, and tell whether calibrated tables fit them."),
    ] = False,
) -> None:
    """Show how each module is quantized, the size of each part, and the cache size per token."""
    load_config(directory)
    from ..model.inspection import inspect as run  # slow to import, so check the directory first
    from ..text.tokenizer import Tokenizer

    if has_side_file(directory, "tokenizer.json"):
        Tokenizer.from_directory(directory)  # nothing of it is shown, but a damaged one is an error
    inspection = run(directory)
    fit = _measured(directory) if check else None
    if json:
        saturation = {} if fit is None else {"saturation": fit.layers, "tables_fit": not fit.misfits}
        print_json({**inspection.to_json(), **saturation})
        return
    _print(inspection)
    if fit is not None:
        _print_fit(fit, directory)


def _measured(directory: Path) -> "Fit":
    from ..evaluation.saturation import measure_fit

    raise_on_signals()
    with progress_bar("running texts") as progress:
        return measure_fit(directory, progress=progress)


def _print_fit(fit: "Fit", directory: Path) -> None:
    console = Console()
    if not fit.worst:
        console.print(f"All weights are finite. On {fit.tokens:,} tokens: no table is calibrated, so all values fit.")
        return
    shares = ", ".join(f"{name} {share:.2%} in layer {layer}" for name, (share, layer) in fit.worst.items())
    console.print(
        f"All weights are finite. On {fit.tokens:,} tokens of the built-in texts, beyond calibrated ranges at most: "
        f"{shares}.",
        highlight=False,
        soft_wrap=True,
    )
    if fit.misfits:
        console.print(
            f"The tables do not fit these texts. To calibrate new ones: faquant calibrate {directory} -o OUT",
            highlight=False,
            soft_wrap=True,
        )


def _print(inspection: "Inspection") -> None:
    config = inspection.config
    console = Console()
    context = f"{inspection.max_position:,} tokens{f' ({config.context_note})' if config.context_note else ''}"
    console.print(
        f"{inspection.directory}: {config.model_type}, {config.num_layers} layers, heads "
        f"{config.num_heads}/{config.num_kv_heads} of {config.head_dim}, context {context}; "
        f"format {inspection.format}, model_quant_type {inspection.quant_type}, "
        f"fa_quant_type {inspection.fa_quant_type}, recipe {inspection.recipe_name if inspection.metadata else '-'}",
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
    for note in inspection.notes:
        console.print(note, highlight=False, soft_wrap=True)
    if not inspection.values_checked:
        console.print("The tensors are large and were not searched for NaN; --check reads them.", soft_wrap=True)
    if inspection.ignored:
        console.print(f"Ignored, since they have no use: {', '.join(inspection.ignored)}", soft_wrap=True)
