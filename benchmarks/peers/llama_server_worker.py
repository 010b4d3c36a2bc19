"""llama.cpp's own server, spoken to over HTTP as an application would; takes and gives token ids."""

import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

from worker import serve

SERVER = Path(sys.executable).parent / "llama-server"
SLOTS, LONGEST = 32, 2304
START_SECONDS = 120


class Worker:
    """The server's process, and a thread for each request."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def version(self) -> str:
        if not SERVER.exists():
            raise FileNotFoundError(f"{SERVER.name} is not built; `make bench-serving` builds it")
        shown = subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True)
        return "llama-server, " + (shown.stdout + shown.stderr).strip().splitlines()[0]

    def load(self, model: str, kv: str, threads: int) -> bool:
        """Start the server; False: it gives no logits."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        flags = {
            "-m": model,
            "-t": threads,
            "-tb": threads,
            "-np": SLOTS,
            "-c": SLOTS * LONGEST,
            "-ctk": kv,
            "-ctv": kv,
        }
        arguments = [str(part) for pair in flags.items() for part in pair]
        self._process = subprocess.Popen(
            [SERVER, *arguments, "-fa", "on", "--port", str(self._port), "--no-webui", "--log-disable"],
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._connect("GET", "/health").getresponse().status == 200:
                    return False
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError("the server did not start")

    def serve(self, requests: list[tuple[float, list[int], int]]) -> dict[str, object]:
        """Requests (at, prompt, tokens): seconds in all, and for each its first token's and its last one's."""
        times: list[tuple[float, float, int]] = [(0.0, 0.0, 0)] * len(requests)
        begin = time.monotonic()

        def ask(number: int, at: float, prompt: list[int], tokens: int) -> None:
            time.sleep(max(0.0, begin + at - time.monotonic()))
            wanted = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
            first, count = 0.0, 0
            for line in self._connect("POST", "/completion", json.dumps(wanted)).getresponse():
                if line.startswith(b"data: "):
                    count = json.loads(line[6:]).get("tokens_predicted", count)  # the last event has it
                    first = first or time.monotonic()
            times[number] = (first - begin - at, time.monotonic() - begin - at, count)

        threads = [Thread(target=ask, args=(number, *request)) for number, request in enumerate(requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"seconds": time.monotonic() - begin, "times": times}

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _connect(self, method: str, path: str, body: str | None = None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection


if __name__ == "__main__":
    worker = Worker()
    try:
        serve({name: getattr(worker, name) for name in ("version", "load", "serve")})
    finally:
        worker.close()
