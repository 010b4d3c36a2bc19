"""Comments in silent streams: clients and proxies see that the connection lives, and otherwise nothing of them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from faquant.errors import FaquantError, UsageError
from faquant.server.config import ServerConfig
from faquant.server.http.streaming import COMMENT, EventStream
from faquant.structured.structured_output import StructuredOutput
from oracles.tiny_server import GREEDY, NAME, BytesEngine, TinyServer

SHORT = 0.001
START: Any = "http.response.start"


class Chunk(BaseModel):
    n: int


class Client:
    """Keeps what an EventStream sends. `blocks`: which messages it does not read until `read` is set."""

    def __init__(self, blocks: Callable[[Any], bool] = lambda message: False) -> None:
        self.sent: list[Any] = []
        self.read = asyncio.Event()
        self._blocks = blocks

    async def send(self, message: Any) -> None:
        if self._blocks(message):
            await self.read.wait()
        self.sent.append(message["type"] if message["type"] == START else message["body"])

    async def has(self, count: int) -> None:
        while self.sent.count(COMMENT) < count:
            await asyncio.sleep(0)

    async def gets(self, chunks: AsyncGenerator[BaseModel, None], interval: float = SHORT) -> None:
        await asyncio.wait_for(EventStream(chunks, interval)({}, None, self.send), 60)  # type: ignore[arg-type]


def test_comments_fill_the_pauses() -> None:
    async def main() -> None:
        client = Client()

        async def chunks() -> AsyncGenerator[BaseModel, None]:
            await client.has(3)
            yield Chunk(n=1)
            await client.has(client.sent.count(COMMENT) + 2)
            yield Chunk(n=2)

        await client.gets(chunks())
        assert client.sent[:4] == [START, COMMENT, COMMENT, COMMENT]
        rest = [part for part in client.sent if part != COMMENT]
        assert rest == [START, b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n"]
        assert client.sent[-1] == rest[-1]
        first, second = client.sent.index(rest[1]), client.sent.index(rest[2])
        assert client.sent[first + 1 : first + 3] == [COMMENT, COMMENT]
        assert second > first + 2

    asyncio.run(main())


def test_no_comments_without_an_interval_nor_without_pauses() -> None:
    async def main() -> None:
        for interval in (0, 60):
            client = Client()

            async def chunks() -> AsyncGenerator[BaseModel, None]:
                await asyncio.sleep(0.01)
                yield Chunk(n=1)

            await client.gets(chunks(), interval)
            assert client.sent == [START, b'data: {"n":1}\n\n', b"data: [DONE]\n\n"]

    asyncio.run(main())


@pytest.mark.parametrize("comments", [0, 2])
def test_an_error_has_its_own_status_before_the_first_comment_only(comments: int) -> None:
    async def main() -> None:
        client = Client()

        async def chunks() -> AsyncGenerator[BaseModel, None]:
            await client.has(comments)
            raise FaquantError("broken")
            yield Chunk(n=1)

        if comments:
            await client.gets(chunks())
            assert client.sent[:3] == [START, COMMENT, COMMENT]
            assert json.loads(client.sent[-1].removeprefix(b"data: "))["error"]["message"] == "broken"
        else:
            with pytest.raises(FaquantError):
                await client.gets(chunks())
            assert not client.sent

    asyncio.run(main())


@pytest.mark.parametrize("stops_at", [START, b"data: {", COMMENT])
def test_a_reader_that_stops_and_goes_on(stops_at: Any) -> None:
    """Whatever it stops at, the parts come whole and in order, and the last one is the last."""

    async def main() -> None:
        client = Client(lambda message: stops_at in (message["type"], message.get("body", b"")[: len(stops_at)]))

        async def chunks() -> AsyncGenerator[BaseModel, None]:
            if stops_at == COMMENT:
                await asyncio.sleep(20 * SHORT)
            yield Chunk(n=1)

        answer = asyncio.ensure_future(client.gets(chunks()))
        await asyncio.sleep(50 * SHORT)
        assert not answer.done()
        client.read.set()
        await answer
        assert client.sent[0] == START
        assert client.sent.count(START) == 1
        assert client.sent[-1] == b"data: [DONE]\n\n"
        assert client.sent.count(b'data: {"n":1}\n\n') == 1

    asyncio.run(main())


def test_an_abandoned_stream_ends_also_if_the_reader_has_stopped() -> None:
    async def main() -> None:
        client = Client(lambda message: message.get("body") == COMMENT)
        closed = []

        async def chunks() -> AsyncGenerator[BaseModel, None]:
            try:
                await asyncio.Event().wait()
                yield Chunk(n=1)
            finally:
                closed.append(True)

        answer = asyncio.ensure_future(client.gets(chunks()))
        await asyncio.sleep(20 * SHORT)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        assert closed
        assert len(asyncio.all_tasks()) == 1
        assert client.sent == [START]

    asyncio.run(main())


@pytest.mark.parametrize("interval", [-1.0, 0.0001, float("nan"), float("inf")])
def test_an_interval_that_is_none(interval: float) -> None:
    with pytest.raises(UsageError, match="sse_keep_alive_interval"):
        ServerConfig(NAME, sse_keep_alive_interval=interval)


PATHS: dict[str, Any] = {
    "/v1/completions": {"prompt": "One day", "max_tokens": 40},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "One day"}], "max_tokens": 40},
    "/v1/responses": {"input": "One day", "max_output_tokens": 40},
}


@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_waits_in_the_queue(path: str) -> None:
    """It gets comments; if its client leaves, it leaves the queue."""
    with TinyServer(BytesEngine(slow=0.002, pages=40, max_num_seqs=1), sse_keep_alive_interval=0.02) as server:
        endless: Any = {"model": NAME, "prompt": "One day", "max_tokens": 3000, **GREEDY}
        with server.client().completions.create(**endless, stream=True) as first:
            next(iter(first))
            body = {**PATHS[path], "stream": True}
            with httpx.stream("POST", server.url + path, json=body, timeout=60) as waiting:
                assert waiting.status_code == 200
                lines = waiting.iter_lines()
                comments = 0
                while comments < 3:
                    comments += next(lines) == ": keep-alive"
                assert server.engine.state().waiting == 1
            end = time.monotonic() + 10
            while server.engine.state().waiting and time.monotonic() < end:
                time.sleep(0.01)
            assert server.engine.state().waiting == 0
            assert server.engine.state().running == 1
        server.wait_until_nothing_is_held()


def test_a_withheld_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client sees the answer, or the error, and nothing else."""
    monkeypatch.setattr(StructuredOutput, "unenforced", ("the digit",))
    wrong = [True]
    monkeypatch.setattr(StructuredOutput, "problem", lambda *_: "It is wrong." if wrong[0] else None)
    schema = {"type": "object", "properties": {"n": {"enum": list(range(10))}}, "required": ["n"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "digit", "schema": schema}}
    asked: Any = {"model": NAME, "messages": [{"role": "user", "content": "A digit?"}], "max_tokens": 60, "seed": 1}
    with (
        TinyServer(BytesEngine(slow=0.003, pages=40), sse_keep_alive_interval=0.002) as server,
        server.client() as client,
    ):
        url = f"{server.url}/v1/chat/completions"
        with pytest.raises(openai.APIError, match="None of 4 answers"):
            list(client.chat.completions.create(**asked, response_format=form, stream=True))
        failed = httpx.post(url, json={**asked, "response_format": form, "stream": True}).text.split("\n\n")
        first = next(part for part in failed if part.startswith("data: "))
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert set(failed[:-2]) == {": keep-alive", first}
        assert json.loads(failed[-2].removeprefix("data: "))["error"]["code"] == "invalid_answer"
        assert failed[-1] == ""
        wrong[0] = False
        whole = client.chat.completions.create(**asked, response_format=form).choices[0].message.content
        chunks = list(client.chat.completions.create(**asked, response_format=form, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        text = httpx.post(url, json={**asked, "response_format": form, "stream": True}).text
        assert ": keep-alive\n\n" in text
        assert text.endswith("data: [DONE]\n\n")
