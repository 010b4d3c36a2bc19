"""faquant evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..config import load_config
from ..errors import UsageError
from ..evaluation.texts import read_texts
from .console import progress_bar, write_json_file

if TYPE_CHECKING:
    from ..evaluation.report import Report


def evaluate(
    directory: Annotated[Path, typer.Argument(help="Quantized directory.", metavar="OUT")],
    against: Annotated[Path, typer.Option(help="The float directory it was made from.", metavar="MODEL")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to measure on, in place of the built-in ones.", metavar="FILE")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Use at most so many tokens of each text.", metavar="N")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON, to stdout if '-'.", metavar="FILE")
    ] = None,
) -> None:
    """Measure what quantization cost: KL, top-1 agreement and perplexity, through the cache that serves."""
    if json_file is not None and not json_file.parent.is_dir():
        raise UsageError(f"{json_file} cannot be written: {json_file.parent} is not a directory.")
    texts = read_texts(text) if text else None
    load_config(directory)
    load_config(against)
    from .. import api  # loads torch: a wrong directory or option is told before that

    with progress_bar("evaluating") as progress:

        def show(name: str, done: int, total: int) -> None:
            progress(done, total, f"evaluating {name}")

        report = api.evaluate(directory, against, texts, max_tokens, show)
    if str(json_file) != "-":
        print_report(report)
    if json_file is not None:
        write_json_file(json_file, report.to_json())


def print_report(report: "Report") -> None:
    """The report as a table on stdout."""
    table = Table(
        title=f"recipe {report.recipe} against float",
        caption=f"KL in 10⁻³ nats (mean, p99), windows of {report.window} tokens",
    )
    table.add_column("text", overflow="fold")
    table.add_column("quantized", no_wrap=True)
    for heading in ("tokens", "KL", "p99", "top-1", "PPL float", "PPL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, results in report.texts.items():
        for variant, result in results.items():
            table.add_row(
                name,
                variant,
                f"{result.tokens:,}",
                f"{result.kl_mean * 1e3:.3f}",
                f"{result.kl_p99 * 1e3:.2f}",
                f"{result.top1:.2%}",
                f"{result.perplexity_float:.3f}",
                f"{result.perplexity:.3f}",
            )
        table.add_section()
    Console().print(table)
