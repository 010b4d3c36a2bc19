"""A server process, accessed over HTTP as by an application; prompts and answers are token ids."""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

START_SECONDS = 120


class HttpServer:
    """Runs from `start` to `close`; each request has a thread.

    path: of requests. body: creates a request, greedy and streamed, from a prompt and a number of tokens. count:
        returns the number of tokens in an event of the stream, or None if it has none.
    """

    def __init__(
        self,
        path: str,
        body: Callable[[list[int], int], dict[str, Any]],
        count: Callable[[dict[str, Any]], int | None],
    ) -> None:
        self._path, self._body, self._count = path, body, count
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self, arguments: list[str]) -> None:
        """Start the program with a free --port, and wait until it is healthy."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [*arguments, "--port", str(self._port)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self._connect("GET", "/health").getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError("the server did not start")

    def serve(self, requests: list[tuple[float, list[int], int]]) -> dict[str, object]:
        """Serve requests (at, prompt, tokens); return the total seconds, and the times of each request's first and last
        token."""
        times: list[tuple[float, float, int]] = [(0.0, 0.0, 0)] * len(requests)
        begin = time.monotonic()

        def ask(number: int, at: float, prompt: list[int], tokens: int) -> None:
            time.sleep(max(0.0, begin + at - time.monotonic()))
            first, count = 0.0, 0
            answer = self._connect("POST", self._path, json.dumps(self._body(prompt, tokens))).getresponse()
            for line in answer:
                if line.startswith(b"data: {"):
                    count = self._count(json.loads(line[6:])) or count
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
