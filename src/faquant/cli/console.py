"""Console input and output shared by the commands."""

import json
import sys
from pathlib import Path
from typing import Any

from ..errors import OutputError, UsageError

MAX_STDIN = 1 << 20


def print_error(message: str) -> None:
    """Print an error as one paragraph on stderr."""
    if sys.stderr is not None:
        print(f"faquant: {message}", file=sys.stderr)


def read_stdin(line: bool = False) -> str:
    """Read the standard input, or its next line.

    Raises:
        UsageError: it is closed, not UTF-8 text, or larger than any context.
    """
    if sys.stdin is None:
        raise UsageError("The standard input is closed; pass the prompt as an argument.")
    try:
        text = sys.stdin.readline(MAX_STDIN + 1) if line else sys.stdin.read(MAX_STDIN + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"The standard input is not UTF-8 text: {error}.") from None
    if len(text) > MAX_STDIN:
        raise UsageError(f"The standard input has more than {MAX_STDIN:,} characters.")
    return text


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def write_json_file(path: Path, value: Any) -> None:
    """Write JSON to `path`, or to stdout if it is `-`.

    Raises:
        OutputError: the file cannot be written.
    """
    if str(path) == "-":
        print_json(value)
        return
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from None
