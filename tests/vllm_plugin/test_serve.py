"""`vllm serve` on a checkpoint of faquant's: function calls and a long prompt, with the answers of faquant's engine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from faquant import LLM, SamplingParams

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

NEEDLE = "The password of the north tower is 7391."
HAY = "The history of the lighthouse begins with fire on a hill, and every sailor knew its keeper by name. "
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    program = "import sys; from vllm.entrypoints.cli.main import main; sys.argv[0] = 'vllm'; main()"
    options = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "smollm2", "--enforce-eager"]
    options += [
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--tool-strict-level",
        "parameter",
        "--max-num-seqs",
        "8",
    ]
    with log.open("w") as output:
        command = [sys.executable, "-c", program, "serve", str(smollm2), *options]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
        try:
            end = time.monotonic() + 300
            while not _is_ready(port):
                assert server.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.5)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=180)
        finally:
            server.terminate()
            server.wait(60)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_needle_in_7000_tokens(client: OpenAI, smollm2: Path) -> None:
    """Found, in the words of faquant's engine."""
    prompt = HAY * 160 + NEEDLE + HAY * 175 + "\nThe password of the north tower is"
    answer = client.completions.create(model="smollm2", prompt=prompt, max_tokens=8, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 6900
    assert "7391" in answer.choices[0].text
    own = LLM(str(smollm2), device="cpu").generate([prompt], SamplingParams(max_tokens=8, temperature=0))
    assert answer.choices[0].text == own[0].text


def test_a_function_call(client: OpenAI) -> None:
    """The arguments follow the schema, which vLLM enforces with --tool-strict-level parameter."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris? Use the tool."}],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=64,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_automatic_calls_are_parsed(client: OpenAI) -> None:
    """--enable-auto-tool-choice: what the model writes on its own, a call or text."""
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice="auto",
        temperature=0,
        max_tokens=64,
    )
    message = answer.choices[0].message
    assert message.tool_calls or message.content
    assert "<tool_call>" not in (message.content or "")
