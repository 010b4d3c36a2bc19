"""faquant evaluate"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from ..errors import OutputError, UsageError
from ..evaluation.limits import CLIPPED_NOTABLY
from ..evaluation.texts import read_texts
from ..kernels.device import chosen
from ..progress import progress_bar
from .console import write_json_file
from .interrupts import raise_on_signals
from .options import DeviceOption, check_checkpoints

if TYPE_CHECKING:
    from ..evaluation.report import Report


def evaluate(
    directory: Annotated[Path, typer.Argument(help="Quantized directory.", metavar="OUT")],
    against: Annotated[Path, typer.Option(help="The float directory it was made from.", metavar="MODEL")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to measure on, instead of the built-in texts.", metavar="FILE")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Use at most this many tokens of each text.", metavar="N")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure less, as quantize does at the end.")] = False,
    write: Annotated[
        bool, typer.Option("--report/--no-report", help="Write faquant_report.json and .html into OUT.")
    ] = True,
    device: DeviceOption = "auto",
    engine: Annotated[
        Literal["faquant", "vllm"],
        typer.Option(
            help="What runs OUT; vllm: vLLM with faquant's plugin, for the texts and a long context, without a report."
        ),
    ] = "faquant",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Also compare the answers to tasks: needle, calls, and tasks of lm-evaluation-harness whose data you "
            "have.",
            metavar="NAME,…",
        ),
    ] = None,
    tasks_from: Annotated[
        Path | None, typer.Option(help="A folder with tasks of your own for the harness.", metavar="FOLDER")
    ] = None,
    task_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Documents of a task; for needle and calls, cases of each kind.", metavar="N"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON, to stdout if '-'.", metavar="FILE")
    ] = None,
) -> None:
    """Measure the accuracy lost by quantization, with the cache used for serving: by text, position, layer and head."""
    if json_file is not None and not json_file.parent.is_dir():
        raise UsageError(f"{json_file} cannot be written: {json_file.parent} is not a directory.")
    if engine == "vllm" and device != "auto":
        raise UsageError(f"--device {device} cannot be combined with --engine vllm, which chooses the device itself.")
    if engine == "vllm" and tasks is not None:
        raise UsageError("--tasks cannot be combined with --engine vllm: tasks run through faquant's engine.")
    if tasks is None and (tasks_from is not None or task_limit is not None):
        raise UsageError("--tasks-from and --task-limit need --tasks.")
    texts = read_texts(text) if text else None
    chosen(device)
    check_checkpoints(directory, against)
    from .. import api  # loads torch, so check the directories and options first
    from ..evaluation.tasks.compare import Tasks

    raise_on_signals()
    names = () if tasks is None else tuple(name.strip() for name in tasks.split(",") if name.strip())
    with progress_bar("evaluating") as progress:
        report = api.evaluate(
            directory,
            against,
            texts,
            max_tokens,
            progress,
            quick=quick,
            device=device,
            engine=engine,
            tasks=None if tasks is None else Tasks(names, tasks_from, task_limit),
            task_progress=lambda done, total: progress(done, total, "running tasks"),
        )
    if str(json_file) != "-":
        print_report(report)
    if write and engine == "faquant":
        write_report(report, directory)
    if json_file is not None:
        write_json_file(json_file, report.to_json())


def write_report(report: "Report", directory: Path) -> None:
    """Write the report into the directory, and print its path or the error."""
    try:
        print(f"Full report: {report.write(directory)}", file=sys.stderr)
    except OutputError as error:
        print(f"The report was not written: {error} Use --no-report to skip it.", file=sys.stderr)


def print_report(report: "Report") -> None:
    """Print the report as a table on stdout."""
    table = Table(
        title=f"{report.subject} against float",
        caption=f"KL in 10⁻³ nats (mean ± standard error, p99), windows of {report.window} tokens",
    )
    table.add_column("text, tokens", overflow="fold", min_width=7)
    table.add_column("quantized", no_wrap=True)
    for heading in ("KL", "p99", "top-1", "PPL float", "PPL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, results in report.texts.items():
        for row, (variant, result) in enumerate(results.items()):
            table.add_row(
                (name, f"{result.tokens:,}")[row] if row < 2 else "",
                variant,
                f"{result.kl_mean * 1e3:.3f}{_error(result.kl_error, 1e3)}",
                f"{result.kl_p99 * 1e3:.2f}",
                f"{result.top1:.2%}",
                f"{result.perplexity_float:.3f}",
                f"{result.perplexity:.3f}",
            )
        table.add_section()
    Console().print(table)
    if report.tasks:
        Console().print(_task_table(report))
    for line in _lines(report):
        print(line)


def _task_table(report: "Report") -> Table:
    table = Table(title="Tasks", caption="mean scores; the report has them by part")
    table.add_column("task", overflow="fold", min_width=7)
    table.add_column("score")
    for heading in ("cases", "float", "quantized", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in report.tasks:
        if not result.part:
            table.add_row(
                result.task,
                result.metric,
                f"{result.cases:,}",
                f"{result.score_float:.3f}",
                f"{result.score:.3f}",
                f"{result.difference:+.3f}{_error(result.difference_error, 1)}",
            )
    return table


def _error(error: float | None, factor: float) -> str:
    return "" if error is None else f" ± {error * factor:.3f}"


def _lines(report: "Report") -> Iterator[str]:
    if report.offsets is not None:
        for variant, values in report.offsets.variants.items():
            moved = ", ".join(
                f"{value * 1e3:.3f} at {offset:,}" for offset, value in zip(report.offsets.offsets, values, strict=True)
            )
            yield f"KL of the same {report.offsets.tokens} tokens, {variant}: {moved}."
        if report.offsets.drifts:
            yield f"The float model itself changes with the position: {max(report.offsets.float_drift):.1g} nats."
    for tensor, share in report.saturation.items():
        if share > CLIPPED_NOTABLY:
            yield f"Up to {share:.2%} of {tensor} in a layer exceeds the calibrated range; calibrate on similar texts."
