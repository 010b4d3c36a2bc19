"""faquant's server, for comparison over HTTP. Runs in faquant's environment."""

import os
import subprocess
import sys
from typing import Any

from http_server import HttpServer
from worker import serve

FAQUANT = [sys.executable, "-m", "faquant"]


def body(prompt: list[int], tokens: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def count(event: dict[str, Any]) -> int | None:
    usage = event.get("usage")
    return usage["completion_tokens"] if usage else None


def version() -> str:
    shown = subprocess.run([*FAQUANT, "--version"], capture_output=True, text=True, check=True)
    return f"faquant serve {shown.stdout.strip()}"


def load(model: str, kv: str, threads: int) -> bool:
    """Start the server; returns False: logits are not supported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    server.start([*FAQUANT, "serve", model, "--kv-cache-dtype", kv])
    return False


if __name__ == "__main__":
    server = HttpServer("/v1/completions", body, count)
    try:
        serve({"version": version, "load": load, "serve": server.serve})
    finally:
        server.close()
