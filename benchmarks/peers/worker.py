"""The loop of a worker process: reads commands from stdin and writes answers to stdout, one line of JSON each.

It runs in the peers' environment and blocks on stdin, so that it does not disturb the timing of others.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping


def serve(commands: Mapping[str, Callable[..., object]]) -> None:
    """Answer `{"command": name, **arguments}` with `{"result": …}` or `{"error": …}` until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep output of libraries out of the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": commands[request.pop("command")](**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
