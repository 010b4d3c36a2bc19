"""faquant quantize"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import FaquantError, UsageError
from ..kernels.device import Device, chosen
from ..progress import progress_bar
from .evaluate import print_report, write_report
from .interrupts import raise_on_signals
from .options import DeviceOption, check_checkpoints

FEW_TOKENS = 1000


def quantize(
    model: Annotated[Path, typer.Argument(help="Hugging Face directory of the float model.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.", metavar="OUT")],
    recipe: Annotated[
        str,
        typer.Option(
            help="default, precise, static, portable, mindie[-plain], attention-only, auto, or a JSON file.",
            metavar="RECIPE",
        ),
    ] = "default",
    calibration: Annotated[
        str, typer.Option(help="builtin, or a .txt or .jsonl file.", metavar="FILE|builtin")
    ] = "builtin",
    max_kl: Annotated[
        float | None,
        typer.Option(help="Search for the cheapest recipe whose mean KL is at most X nats.", metavar="X"),
    ] = None,
    for_batch: Annotated[
        str | None,
        typer.Option(
            help="With --max-kl: numbers of sequences (or of a prompt's tokens) whose speed counts; 1,32 by default.",
            metavar="N,…",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--evaluate/--no-evaluate", help="Evaluate OUT at the end, and write a report into it."),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a model directory.")] = False,
    keep_kv_tables: Annotated[
        bool,
        typer.Option("--keep-kv-tables", help="Use the tables of K and V that another tool has written into MODEL."),
    ] = False,
    device: DeviceOption = "auto",
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the files of an interrupted run instead of resuming it.")
    ] = False,
) -> None:
    """Quantize a Hugging Face checkpoint to 8-bit attention and 8-bit linears."""
    started = time.monotonic()
    if for_batch is not None and max_kl is None:
        raise UsageError("--for-batch needs --max-kl.")
    batches = _numbers("1,32" if for_batch is None else for_batch)
    chosen(device)
    (opened,) = check_checkpoints(model)
    from .. import api  # loads torch, so check the directory and options first

    raise_on_signals()
    own = opened.metadata is not None and opened.metadata.attention is not None
    if any(opened.schemes) and not own and not keep_kv_tables:
        print(
            f"The tables of K and V in {model} are not used; --keep-kv-tables uses them.",
            file=sys.stderr,
        )
    if max_kl is not None and recipe == "default":
        recipe = "auto"
    again = f"faquant evaluate {output} --against {model}"
    if (
        measure
        and not restart
        and _lacks_report(output)
        and api.is_quantized(
            model,
            output,
            recipe,
            calibration,
            overwrite=overwrite,
            max_kl=max_kl,
            for_batch=batches,
            keep_kv_tables=keep_kv_tables,
        )
    ):
        print(f"{output} is complete; only the evaluation is missing.", file=sys.stderr)
        _measure(model, output, again, device)
        return
    with progress_bar("quantizing") as progress:

        def show(what: str, done: int, total: int) -> None:
            progress(done, total, f"trying recipes: {what}")

        tokens = api.quantize(
            model,
            output,
            recipe,
            calibration,
            overwrite=overwrite,
            restart=restart,
            max_kl=max_kl,
            for_batch=batches,
            progress=progress,
            search_progress=show,
            to_be_measured=measure,
            keep_kv_tables=keep_kv_tables,
            device=device,
        )
    if tokens < FEW_TOKENS:
        print(
            f"Only {tokens:,} tokens of calibration data. Use thousands, of every kind that you serve.", file=sys.stderr
        )
    took = f"{output}: recipe {recipe}, calibrated on {tokens:,} tokens, {time.monotonic() - started:.0f} s."
    if not measure:
        print(f"{took} To measure the loss: {again}", file=sys.stderr)
        return
    print(took, file=sys.stderr)
    _measure(model, output, again, device)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(f"--for-batch takes numbers from 1 on, such as 1,32, not {text!r:.40}.")
    return found


def _lacks_report(output: Path) -> bool:
    """Whether `output` is a directory without a report."""
    from ..evaluation.report import NAME
    from ..quantization import provenance

    if (output / f"{NAME}.html").exists():
        provenance.forget(output)  # an interrupted run may not have reached this
        return False
    return output.is_dir()


def _measure(model: Path, output: Path, again: str, device: Device) -> None:
    """Evaluate the new directory quickly, and write a report into it."""
    from .. import api
    from ..quantization import provenance

    try:
        with progress_bar("evaluating") as progress:
            report = api.evaluate(output, model, progress=progress, quick=True, device=device)
    except FaquantError as error:
        # The directory is complete; only the report is missing.
        print(f"{output} is complete, but could not be evaluated: {error}", file=sys.stderr)
        provenance.forget(output)
        return
    print_report(report)
    write_report(report, output)
    provenance.forget(output)
    print(f"This was a quick evaluation. On all texts: {again}", file=sys.stderr)
