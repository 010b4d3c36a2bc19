"""A complete demo on a real model: download SmolLM2-135M-Instruct, quantize it, measure it, ask it a question."""

import shlex
import sys
import time
from pathlib import Path

from demo_model import fetch_demo_model
from faquant.cli.console import print_error
from faquant.cli.main import run
from faquant.errors import FaquantError

OUTPUT = "smollm2-fa8"
PROMPT = "What is the capital of France, and what is it known for?"


def main() -> int:
    """Run the demo in the current directory; returns the exit status of the first step that fails, or 0."""
    started = time.monotonic()
    output = Path(OUTPUT)
    try:
        model = fetch_demo_model()
    except FaquantError as error:
        print_error(str(error))
        return error.exit_status
    for command in (
        ["quantize", str(model), "-o", str(output), "--overwrite"],
        ["inspect", str(output)],
        ["generate", str(output), PROMPT, "--chat", "--max-tokens", "64"],
    ):
        print(f"\n$ faquant {shlex.join(command)}", flush=True)
        if status := run(command):
            return status
    elapsed = time.monotonic() - started
    print(f"\nDone in {elapsed:.0f} s. Talk with it: .venv/bin/faquant chat {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
