"""A server of the chat page whose answers are written beforehand, and which keeps what it was asked."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from faquant.server.http.socket import bind
from faquant.server.page import files as chat_page

METRICS = {"cache_pages": 40, "cache_page_tokens": 64, "cache_pages_used": 10, "cache_pages_idle": 4}


def text(content: str) -> dict[str, Any]:
    return {"delta": {"content": content}}


def call(index: int, name: str | None = None, arguments: str | None = None) -> dict[str, Any]:
    """A piece of a call: with its name where it begins, as OpenAI's API streams it."""
    start = {} if name is None else {"id": f"call_{index}", "type": "function"}
    function = {} if name is None else {"name": name}
    function |= {} if arguments is None else {"arguments": arguments}
    return {"delta": {"tool_calls": [{"index": index, **start, "function": function}]}}


def finish(reason: str) -> dict[str, Any]:
    return {"delta": {}, "finish_reason": reason}


@dataclass
class Script:
    """One answer: pieces of its choice. `held` is waited for before the last; without `done` the answer breaks off."""

    pieces: Sequence[dict[str, Any]] = ()
    usage: Mapping[str, Any] | None = None
    done: bool = True
    held: threading.Event | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    async def events(self) -> AsyncIterator[str]:
        yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number, piece in enumerate(self.pieces, 1):
            while number == len(self.pieces) and self.held and not self.held.is_set():
                await asyncio.sleep(0.01)
            yield _event({"choices": [{"index": 0, **piece}]})
        if self.usage:
            yield _event({"choices": [], "usage": self.usage})
        if self.error:
            yield _event({"error": {"message": self.error}})
        elif self.done:
            yield "data: [DONE]\n\n"


def _event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


class ScriptedServer:
    """Gives one script after the other. asked: the bodies of the requests for answers."""

    def __init__(self, port: int = 0, model: str = "scripted") -> None:
        self.scripts: list[Script] = []
        self.asked: list[Any] = []
        self._model = model
        self._socket = bind("127.0.0.1", port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> "ScriptedServer":
        self._socket.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(chat_page.router)

        @app.get("/v1/models")
        async def models() -> Any:
            return {"data": [{"id": self._model, "max_model_len": 2560}]}

        @app.get("/metrics")
        async def metrics() -> Response:
            values = {**METRICS, "sequences_running": 1, "sequences_waiting": 2}
            return Response("".join(f"faquant_{name} {value}.0\n" for name, value in values.items()))

        @app.post("/v1/chat/completions")
        async def answer(request: Request) -> Response:
            self.asked.append(await request.json())
            script = self.scripts.pop(0)
            if script.status != 200:
                body = json.dumps({"error": {"message": script.error}})
                return Response(body, script.status, dict(script.headers))
            return StreamingResponse(script.events(), media_type="text/event-stream")

        return app
