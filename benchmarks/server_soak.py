"""An hour of requests to `faquant serve`, with one kill, to check for lost requests, changed answers and leaks.

python benchmarks/server_soak.py [--int8 DIR] [--minutes 60] [--clients 24] [--kinds 60] [--seed 0] [--json FILE]

Clients use the official openai package to request chats and completions, streamed or not, with tools, schemas, several
answers and logprobs; they abandon a fifth of the streams, and sometimes send invalid requests. The cache is small and
the queue short, so that sequences are preempted and clients are told to retry. After a tenth of the time, the server is
killed and restarted. At the end all clients pause, and the server must release all their resources; then it gets
SIGTERM while it is answering. The program fails (exit status 1) if an answer differs from the one to the same request
alone, if a response is neither an answer nor the right refusal, if nothing was preempted, or if pages, memory or open
files leak. The model is the demo model.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from end_to_end import add_models, models
from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from timing import finish, start

from faquant.evaluation.texts import builtin_texts

LEFT, REFUSED = 0.2, 0.05
ALLOWED_GROWTH = 64 << 20
"""Allowed growth of resident memory in bytes, after a fifth of the time."""
FLAGS = ("--kv-cache-memory", "30MiB", "--max-num-seqs", "12", "--max-queue", "6", "--max-model-len", "2560")
HELD = ("sequences_running", "sequences_waiting", "cache_pages_used")
"""Metrics that must be 0 when there are no requests."""
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The forecast.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time", "description": "What time it is."}},
]
HOSTILE = (
    b"{",
    b"[" * 100_000,
    b'{"messages": []}',
    b'{"messages": [{"role": "judge", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 9223372036854775808}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": -1}',
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "a b"}}]}',
)

Kind = dict[str, Any]
Answer = list[tuple[str, list[tuple[str, str]], str, list[float]]]
"""For each choice: text, tool calls, finish reason, and the tokens' log-probabilities."""


def kinds(count: int, random: Random) -> list[Kind]:
    """Request bodies; those with a prompt are for completions."""
    texts = list(builtin_texts().values())
    made: list[Kind] = []
    for number in range(count):
        text = random.choice(texts)
        begin = random.randrange(len(text) - 1200)
        own = text[:500] * random.randrange(2) + text[begin : begin + random.choice((20, 100, 300, 700))]
        kind: Kind = {
            "seed": number,
            "temperature": random.choice((0.0, 0.7, 1.2)),
            "top_p": random.choice((1.0, 0.9)),
            "n": random.choice((1, 1, 1, 2)),
            "max_tokens": random.choice((1, 8, 24, 24, 60, 60, 160)),
        }
        if number % 4 == 0:
            kind |= {"prompt": own, "stop": ["\n\n"], "logprobs": 0}
        else:
            kind |= {"messages": [{"role": "user", "content": own}], "logprobs": True}
        if number % 4 == 1:
            kind |= {"tools": TOOLS, "max_tokens": 80}
            kind["tool_choice"] = random.choice(
                ("auto", "none", "required", {"type": "function", "function": {"name": "weather"}})
            )
        if number % 4 == 2:
            kind["max_tokens"] = 80
            kind["response_format"] = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA}}
        if number % 4 == 3:  # grows by several pages while others hold the rest
            kind |= {"messages": [{"role": "user", "content": own[-100:]}], "max_tokens": 500}
        made.append(kind)
    return made


@dataclass
class Server:
    """`faquant serve` as a process."""

    directory: Path
    threads: int
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "faquant", "serve", str(self.directory), "--port", str(self.port), *FLAGS]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        async with httpx.AsyncClient(base_url=self.url) as client:
            while True:
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                if self.process.poll() is not None:
                    sys.exit("the server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError("the server has not been restarted")
        return self.process.pid

    def resident(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]) * 4096

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def metrics(self) -> dict[str, float]:
        async with httpx.AsyncClient(base_url=self.url) as client:
            text = (await client.get("/metrics")).text
        return {name: float(value) for name, value in re.findall(r"^(faquant_\w+) (\S+)$", text, re.MULTILINE)}


@dataclass
class Soak:
    """The clients and their results."""

    server: Server
    asked: list[Kind]
    random: Random
    alone: list[Answer] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    is_down: bool = False
    rests: bool = False
    is_ending: bool = False
    problem: str = ""

    def __post_init__(self) -> None:
        self.client = AsyncOpenAI(base_url=f"{self.server.url}/v1", api_key="none", max_retries=0, timeout=600)

    async def ask(self, number: int, streamed: bool, leave_after: int | None = None) -> Answer | None:
        """One answer; None if it was abandoned after `leave_after` chunks."""
        body: dict[str, Any] = {"model": self.server.directory.resolve().name, **self.asked[number]}
        is_chat = "messages" in body
        create: Any = (self.client.chat.completions if is_chat else self.client.completions).create
        begin = time.monotonic()
        if not streamed:
            return [whole(choice, is_chat) for choice in (await create(**body)).choices]
        made: list[Any] = [["", [], "", []] for _ in range(body["n"])]
        async with await create(**body, stream=True) as stream:
            chunks = 0
            async for chunk in stream:
                if not chunks:
                    self.first.append(time.monotonic() - begin)
                if chunks == leave_after:
                    return None
                chunks += 1
                for choice in chunk.choices:
                    add(made[choice.index], choice, is_chat)
        return [
            (text, [(name, written) for name, written in calls], reason, odds) for text, calls, reason, odds in made
        ]

    async def learn(self) -> None:
        """The server's answers to each request alone."""
        for number in range(len(self.asked)):
            answer = await self.ask(number, streamed=False)
            if answer is None or await self.ask(number, streamed=True) != answer:
                sys.exit(f"kind {number} has a different answer when streamed")
            self.alone.append(answer)

    async def work(self) -> None:
        """One client."""
        while not (self.rests or self.is_ending or self.problem):
            try:
                await self.once()
            except APIStatusError as error:
                if error.status_code == 429 and "retry-after" in error.response.headers:
                    self.seen["told to retry"] += 1
                    await asyncio.sleep(self.random.random())
                elif error.status_code == 503 and self.is_ending:
                    self.seen["told that the server is stopping"] += 1
                else:
                    self.problem = f"status {error.status_code}: {error.message}"
            except (APIConnectionError, httpx.TransportError) as error:
                # openai raises the first one for the second.
                has_not_begun = isinstance(error.__cause__ or error, httpx.ConnectError)
                if not (self.is_down or (self.is_ending and has_not_begun)):
                    self.problem = f"a request was not answered: {error!r}"
                self.seen["lost by the kill"] += self.is_down
                await asyncio.sleep(0.2)

    async def once(self) -> None:
        if self.random.random() < REFUSED:
            await self.be_refused()
            return
        number = self.random.randrange(len(self.asked))
        streamed = self.random.random() < 0.7
        leaves = streamed and self.random.random() < LEFT / 0.7
        answer = await self.ask(number, streamed, self.random.randrange(12) if leaves else None)
        if answer is None:
            self.seen["left"] += 1
        elif answer == self.alone[number]:
            self.seen["answered"] += 1
        else:
            self.problem = f"kind {number} was answered {answer}, alone {self.alone[number]}"

    async def be_refused(self) -> None:
        body = self.random.choice(HOSTILE)
        async with httpx.AsyncClient(base_url=self.server.url) as client:
            headers = {"Content-Type": "application/json"}
            answer = await client.post("/v1/chat/completions", content=body, headers=headers)
        if not 400 <= answer.status_code < 500 and not (self.is_ending and answer.status_code == 503):
            self.problem = f"{body[:80]!r} was answered with {answer.status_code}"
        self.seen["refused"] += 1

    async def kill(self) -> None:
        """Kill the server without a word, and start it again."""
        self.is_down = True
        self.server.kill()
        await self.server.start()
        await asyncio.sleep(1)  # until clients of the killed server have noticed
        self.is_down = False

    def send(self, clients: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.work()) for _ in range(clients)]

    async def end(self) -> int:
        """Send SIGTERM while answers are being written; returns the exit status."""
        self.is_ending = True
        os.kill(self.server.pid, signal.SIGTERM)
        process = self.server.process
        return await asyncio.to_thread(process.wait, 120) if process is not None else 0


def whole(choice: Any, is_chat: bool) -> tuple[str, list[tuple[str, str]], str, list[float]]:
    if not is_chat:
        return choice.text, [], choice.finish_reason, choice.logprobs.token_logprobs
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason, [one.logprob for one in choice.logprobs.content]


def add(made: list[Any], choice: Any, is_chat: bool) -> None:
    """The part of a chunk for one choice."""
    made[2] = choice.finish_reason or made[2]
    if not is_chat:
        made[0] += choice.text
        made[3] += choice.logprobs.token_logprobs if choice.logprobs else []
        return
    made[0] += choice.delta.content or ""
    made[3] += [one.logprob for one in choice.logprobs.content] if choice.logprobs else []
    for call in choice.delta.tool_calls or ():
        if call.index == len(made[1]):
            made[1].append([call.function.name, ""])
        made[1][call.index][1] += call.function.arguments or ""


async def soak(arguments: argparse.Namespace, server: Server) -> None:
    random = Random(arguments.seed)
    await server.start()
    run = Soak(server, kinds(arguments.kinds, random), random)
    await run.learn()
    calls = [call for answer in run.alone for _, some, *_ in answer for call in some]
    for _, written in calls:
        json.loads(written)
    print(f"{len(run.asked)} kinds answered alone, {len(calls)} calls in them", flush=True)

    begin = time.monotonic()
    length = arguments.minutes * 60
    workers = run.send(arguments.clients)
    rows: list[dict[str, object]] = []
    killed = False
    early: tuple[int, int] | None = None
    while not run.problem and (past := time.monotonic() - begin) < length:
        if past > length / 10 and not killed:
            await run.kill()
            killed = True
        if past > length / 5 and early is None:
            early = server.resident(), server.open_files()
        row = {"seconds": past, "resident": server.resident(), "files": server.open_files(), **run.seen}
        rows.append({**row})
        print(f"{past:6.0f} s  {server.resident() >> 20} MiB  {row['files']} files  {dict(run.seen)}", flush=True)
        await asyncio.sleep(min(60, length / 20))
    run.rests = True
    await asyncio.wait(workers)
    await asyncio.sleep(1)  # until the server has noticed the last abandoned stream
    metrics, resident, files = await server.metrics(), server.resident(), server.open_files()
    run.rests = False
    workers = run.send(arguments.clients)
    await asyncio.sleep(5)
    status = await run.end()
    await asyncio.wait(workers)
    if run.problem:
        sys.exit(run.problem)
    grown = resident - (early or (resident, files))[0]
    cuts = statistics.quantiles(run.first, n=100)
    print(f"{dict(run.seen)}; exit status {status}; memory grew by {grown / 2**20:.1f} MiB after the first fifth")
    print(f"first token after {cuts[49]:.2f} s (p50), {cuts[98]:.2f} s (p99)")
    print({name: value for name, value in metrics.items() if not name.endswith("_created")})
    finish(arguments, rows, grown=grown, metrics=metrics)
    held = {name: metrics[f"faquant_{name}"] for name in HELD}
    if any(held.values()) or not metrics["faquant_preemptions_total"]:
        sys.exit(f"when idle, the server held {held}; preemptions: {metrics['faquant_preemptions_total']}")
    if status or grown > ALLOWED_GROWTH or files > (early or (0, files))[1] + arguments.clients:
        sys.exit(f"exit status {status}, memory grew by {grown:,} bytes, {files} files are open")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--kinds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = start(parser)
    _, int8, _ = models(arguments)
    server = Server(int8, arguments.threads)
    try:
        asyncio.run(soak(arguments, server))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
