"""A server in this process over a random decoder that writes bytes, and clients for it."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import uvicorn

from faquant.engine.async_engine import AsyncEngine
from faquant.engine.request import Completion
from faquant.sampling.sampler import SamplingParams
from faquant.server.app import make_app
from faquant.server.config import ServerConfig
from faquant.server.http.connection import Connection
from faquant.server.http.socket import bind
from faquant.server.service import Service
from faquant.text.tokenizer import Tokenizer
from oracles import random_decoder
from oracles.tiny_engine import TinyEngine
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer

random_decoder.MODELS["bytes"] = {**random_decoder.LLAMA, "vocab_size": VOCAB_SIZE}
NAME = "tiny"
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@cache
def tokenizer() -> Tokenizer:
    with TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        return Tokenizer.from_directory(Path(directory))


class BytesEngine(TinyEngine):
    """A TinyEngine whose tokens are bytes, with a chat template. `slow`: seconds that each step takes besides."""

    def __init__(self, slow: float = 0.0, **options: Any) -> None:
        super().__init__("bytes", **options)
        self.tokenizer = tokenizer()
        self.slow = slow

    def step(self) -> list[object]:
        if self.has_work:
            time.sleep(self.slow)
        return super().step()


def alone(prompt: Sequence[int], params: SamplingParams) -> Completion:
    """What the engine answers with nothing beside it."""
    engine = BytesEngine(max_num_seqs=1, max_num_batched_tokens=4096, enable_prefix_caching=False)
    (request,) = engine.add(prompt, dataclasses.replace(params, n=1))
    engine.run()
    return request.completion()


class TinyServer:
    """Runs from `with` to its end, at a port of its own. `settings` are of ServerConfig."""

    def __init__(self, engine: BytesEngine | None = None, **settings: Any) -> None:
        self.engine = engine or BytesEngine(pages=40)
        self.service = Service(AsyncEngine(self.engine), ServerConfig(NAME, **settings))
        self.socket = bind("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            make_app(self.service),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],))

    def __enter__(self) -> "TinyServer":
        self.socket.listen()
        self.service.engine.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.service.engine.shutdown(timeout=30)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def wait_until_nothing_is_held(self, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.engine.has_work and not self.engine.state().used_pages and not self.service.gate.inside:
                return
            time.sleep(0.01)
        raise AssertionError(f"held: {self.engine.state()}, {self.service.gate.inside} inside")
