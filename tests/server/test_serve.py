"""`faquant serve` as a process: how it starts, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import httpx
import pytest

from faquant.cli.main import run
from faquant.cli.serve import serve
from faquant.engine.engine_config import EngineConfig
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

LONG: Any = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("smollm", directory, vocab_size=VOCAB_SIZE, max_position_embeddings=4096)
    write_tokenizer(directory)
    return directory


class Process:
    """`faquant serve`, ready to answer."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faquant", "serve", str(directory), "--port", "0", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.output = ""
        assert self.process.stderr is not None
        self.url = ""
        while not self.url:
            line = self.process.stderr.readline()
            assert line, self.output
            self.output += line
            if match := re.search(r"http://\S+:\d+", line):
                self.url = match[0]
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.output)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line

    def end(self) -> int:
        status = self.process.wait(30)
        self._reader.join()
        return status


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*flags: str) -> Process:
        started.append(Process(directory, *flags))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.end()


def test_every_setting_of_the_engine_is_a_flag() -> None:
    flags = signature(serve).parameters
    for field in fields(EngineConfig):
        assert flags[field.name].default == field.default


def test_the_table_shows_the_settings_in_use(start: Callable[..., Process]) -> None:
    process = start("--kv-cache-memory", "1MiB", "--served-model-name", "mine", "--no-enable-prefix-caching")
    assert httpx.get(f"{process.url}/v1/models").json()["data"][0]["id"] == "mine"
    for part in ("float", "576 bytes per token", "1,792 tokens at most", "threads", "mine", "no key"):
        assert part in process.output


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ((), "temperature 0.6, top_k 20 by default (generation_config.json)"),
        (("--generation-config", "none"), "temperature 1 and all tokens by default"),
    ],
)
def test_the_table_shows_the_sampling_defaults(
    directory: Path, tmp_path: Path, flags: tuple[str, ...], shown: str
) -> None:
    model = shutil.copytree(directory, tmp_path / "model")
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20}')
    process = Process(model, *flags)
    process.process.kill()
    process.end()
    assert shown in re.sub(r"[│\s]+", " ", process.output)


def test_the_table_explains_a_shortened_context(directory: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(directory, tmp_path / "long")
    config = json.loads((longer / "config.json").read_text())
    config["dual_chunk_attention_config"] = {"original_max_position_embeddings": 1024}
    (longer / "config.json").write_text(json.dumps(config))
    process = Process(longer)
    process.process.kill()
    process.end()
    shown = re.sub(r"[│\s]+", " ", process.output)  # a narrow table breaks lines
    assert "1,024 tokens at most (4,096 need dual chunk attention, which faquant does not compute)" in shown


@pytest.mark.parametrize(
    ("flags", "statuses"),
    [
        ((), (200, 421)),
        (("--allowed-hosts", "here.example"), (200, 421)),
        (("--allowed-hosts", "evil.example"), (200, 200)),
        (("--allowed-hosts", "*"), (200, 200)),
        (("--api-key", "k"), (200, 200)),
    ],
)
def test_without_a_key_dns_rebinding_is_refused(
    start: Callable[..., Process], flags: tuple[str, ...], statuses: tuple[int, int]
) -> None:
    url = start(*flags).url
    asked = ("localhost", "evil.example")
    assert tuple(httpx.get(f"{url}/health", headers={"Host": host}).status_code for host in asked) == statuses


def test_sigterm_finishes_answers_and_refuses_new_requests(start: Callable[..., Process]) -> None:
    process = start()
    with httpx.stream(
        "POST", f"{process.url}/v1/completions", json={**LONG, "max_tokens": 500}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while httpx.get(f"{process.url}/health").status_code != 503 and time.monotonic() < end:
            time.sleep(0.01)
        refused = httpx.post(f"{process.url}/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert process.end() == 0
    assert "Traceback" not in process.output


ENDLESS = """
import sys, time
from faquant.cli.main import main
from faquant.server import run
from faquant.structured import grammar

run.LAST_SECONDS = 1
grammar.CompiledGrammar = lambda *_: time.sleep(1000)
sys.argv[1:] = ["serve", sys.argv[1], "--port", sys.argv[2], "--request-timeout", "1"]
main()
"""


@pytest.mark.parametrize(("signals", "status"), [(1, 0), (2, 128 + signal.SIGTERM)])
def test_a_busy_thread_does_not_prevent_shutdown(directory: Path, signals: int, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "response_format": {"type": "json_object"}}
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(directory), str(port)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        answered = 0
        while not answered and time.monotonic() < end:
            try:
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                answered = httpx.post(url, json=body, timeout=30).status_code
            except httpx.ConnectError:
                time.sleep(0.05)
        assert answered == 504
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.7)  # uvicorn has ended, and Python waits for the thread
        assert process.wait(20) == status
    finally:
        process.kill()
        process.wait()


def test_a_second_signal_ends_the_server_at_once(start: Callable[..., Process]) -> None:
    process = start()
    with httpx.stream("POST", f"{process.url}/v1/completions", json={**LONG, "n": 8}, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.process.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM
        with pytest.raises(httpx.TransportError):
            list(lines)
    assert "Traceback" not in process.output


def test_killed_and_restarted_on_the_same_port(start: Callable[..., Process]) -> None:
    process = start()
    process.process.kill()
    process.end()
    again = start("--port", process.url.rsplit(":", 1)[1])
    assert again.url == process.url


def test_a_busy_port_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        assert run(["serve", str(directory), "--port", str(busy.getsockname()[1])]) == 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "in use" in output


def test_a_host_of_another_machine_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(directory), "--host", "192.0.2.1"]) == 1  # reserved for documentation, RFC 5737
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert "--host" in output


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--host", "no such host"],
        ["--max-num-seqs", "0"],
        ["--max-num-batched-tokens", "8"],
        ["--kv-cache-memory", "lots"],
        ["--kv-cache-memory", "1"],
        ["--max-model-len", "100000"],
        ["--allowed-origins", "example.org"],
        ["--allowed-hosts", "http://example.org"],
        ["--allowed-hosts", "example.org:80"],
        ["--request-timeout", "nan"],
        ["--max-queue", "-1"],
        ["--api-key", ""],
        ["--served-model-name", ""],
        ["--max-body", "0"],
        ["--port", "http"],
        ["--kv-cache-dtype", "int3"],
        ["--generation-config", "here"],
        ["--response-store", "lots"],
        ["--prot", "1"],
    ],
)
def test_a_wrong_flag_is_one_line(directory: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(directory), "--port", "0", *flags]) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.startswith("faquant: ")
