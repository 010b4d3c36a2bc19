"""What a JSON schema costs per step over HTTP, beside llama.cpp's server: the same schema, prompts and draws.

python benchmarks/grammar_peers.py [--int8 DIR] [--gguf FILE] [--llama-server PROGRAM] [--requests 32] [--rounds 3]
                                   [--threads N] [--json FILE]

Eight clients ask one question after another, for answers of one schema or free ones of about the same length, by turns.
A step is the time in which each of the eight gets a token: eight times the duration, divided by the number of tokens.
Prompts and the end, when some clients have no more questions, count too; more --requests make that smaller.
Draws: temperature 0.8, top_p 0.95. `make bench-serving` builds the server, `make bench-peers` writes the GGUF file.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from end_to_end import add_models, models
from function_calling import served
from overhead import NOTES, QUESTION
from timing import finish, start

CLIENTS = 8
DRAW = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0}
TOKENS = 160
FORMAT = {"type": "json_schema", "json_schema": {"name": "notes", "schema": NOTES, "strict": True}}


def ask(url: str, number: int, form: dict[str, Any]) -> int:
    """Tokens of an answer."""
    body = {
        "messages": [{"role": "user", "content": f"{number}. {QUESTION}"}],
        "max_tokens": TOKENS,
        "seed": number,
        **DRAW,
        **form,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        tokens: int = json.load(response)["usage"]["completion_tokens"]
    return tokens


def step(url: str, requests: int, form: dict[str, Any]) -> float:
    """Seconds of a step with all clients at work."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        begin = time.perf_counter()
        tokens = sum(clients.map(lambda number: ask(url, number, form), range(requests)))
        return CLIENTS * (time.perf_counter() - begin) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--llama-server", type=Path, default=Path(".venv-peers/bin/llama-server"))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = start(parser)
    _, int8, gguf = models(arguments)
    commands = {"faquant": [sys.executable, "-m", "faquant", "serve", str(int8)]}
    if arguments.llama_server.exists():
        flags = ["-m", gguf, "-np", CLIENTS, "-c", CLIENTS * 1024, "-t", arguments.threads]
        commands["llama-server"] = [str(arguments.llama_server), "--jinja", *map(str, flags)]
    rows: list[dict[str, object]] = []
    print(f"{'':14}{'free':>9}{'schema':>9}  ms of a step with {CLIENTS} sequences; ratio")
    for name, command in commands.items():
        with ExitStack() as stack:
            url = stack.enter_context(served(command, arguments.threads))
            step(url, CLIENTS, {"response_format": FORMAT})
            times: dict[str, list[float]] = {"free": [], "schema": []}
            for _ in range(arguments.rounds):
                times["free"].append(step(url, arguments.requests, {"ignore_eos": True}))
                times["schema"].append(step(url, arguments.requests, {"response_format": FORMAT}))
        free, schema = (statistics.median(times[kind]) for kind in ("free", "schema"))
        print(f"{name:14}{free * 1e3:9.2f}{schema * 1e3:9.2f}{schema / free:9.3f}", flush=True)
        rows.append({"system": name, **times})
    finish(arguments, rows)


if __name__ == "__main__":
    main()
