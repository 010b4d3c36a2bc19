"""llama.cpp's server."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from http_server import HttpServer
from worker import serve

SERVER = Path(sys.executable).parent / "llama-server"
SLOTS, LONGEST = 32, 2304


def body(prompt: list[int], tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}


def version() -> str:
    if not SERVER.exists():
        raise FileNotFoundError(f"{SERVER.name} is not built; `make bench-serving` builds it")
    shown = subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True)
    return "llama-server, " + (shown.stdout + shown.stderr).strip().splitlines()[0]


def load(model: str, kv: str, threads: int) -> bool:
    """Start the server; returns False: logits are not supported."""
    flags = {"-m": model, "-t": threads, "-tb": threads, "-np": SLOTS, "-c": SLOTS * LONGEST, "-ctk": kv, "-ctv": kv}
    arguments = [str(part) for pair in flags.items() for part in pair]
    server.start([str(SERVER), *arguments, "-fa", "on", "--no-webui", "--log-disable"])
    return False


if __name__ == "__main__":
    # The last event has the number of tokens.
    server = HttpServer("/completion", body, lambda event: event.get("tokens_predicted"))
    try:
        serve({"version": version, "load": load, "serve": server.serve})
    finally:
        server.close()
