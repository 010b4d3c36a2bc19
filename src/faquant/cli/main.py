"""The `faquant` program: its commands, and how errors are printed."""

import io
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any

import typer

from ..errors import FaquantError
from .bench import bench
from .calibrate import calibrate
from .chat import chat
from .console import print_error
from .convert import convert
from .doctor import doctor
from .evaluate import evaluate
from .generate import generate
from .inspect import inspect
from .interrupts import INTERRUPTED, exit_on_signals, print_interrupted
from .plan import plan
from .quantize import quantize
from .serve import serve

_WrongUse: Any = typer.BadParameter.__base__  # click's UsageError, whose name in typer changes between versions

app = typer.Typer(
    help="8-bit attention for LLaMA-family models: quantize, measure, run. --debug shows tracebacks of errors.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(metadata.version("faquant"))
        raise typer.Exit


for command in (quantize, calibrate, evaluate, generate, chat, serve, bench, inspect, plan, convert, doctor):
    app.command()(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line. `--debug` at any position shows tracebacks.

    Returns:
        The exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    debug = "--debug" in arguments
    try:
        plain = [argument for argument in arguments if argument != "--debug"]
        status: int = app(args=plain or ["--help"], prog_name="faquant", standalone_mode=False) or 0
        if status == INTERRUPTED:  # typer converts a KeyboardInterrupt to this status
            print_interrupted()
        return status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except typer.Abort:
        print_error("Aborted.")
        return 1
    except _WrongUse as error:
        what = " ".join(error.format_message().split()).rstrip(".")
        print_error(f"{what}. For help: {error.ctx.command_path if error.ctx else 'faquant'} --help")
        return 2
    except FaquantError as error:
        if debug:
            raise
        print_error(str(error))
        return error.exit_status
    except BrokenPipeError:
        # The reader of stdout has closed the pipe. Avoid a second error when Python flushes it at exit.
        sys.stdout = sys.stderr
        return 1
    except Exception as error:
        if debug:
            raise
        print_error(_unforeseen(error))
        return 1


def _unforeseen(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "gguf"):
        return f"This command needs the package {error.name}: pip install 'faquant[quantize]'"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "There is not enough memory. Free some, or use a smaller model or context."
    if isinstance(error, OSError):
        return f"The operating system reports an error: {error}."
    text = " ".join(str(error).split())[:300]
    return f"Unexpected error, please report it: {type(error).__name__}: {text}. --debug shows the traceback."


def main() -> None:
    """Entry point of the console script."""
    exit_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status = run(sys.argv[1:])
    exit_on_signals()  # nothing is left to clean up, and an exception would disturb Python's shutdown
    sys.exit(status)
