"""How many files of faquant a chat request and a quantization enter, and how often calls cross package boundaries.

Packages are those of src/faquant. A change is a call or return between functions of different packages; the changes per
layer are the difference that one more layer makes.
"""

import asyncio
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import faquant

ROOT = Path(__file__).parents[1]
SOURCES = str(Path(faquant.__file__).parent)
DATA = ROOT / "tests" / "data" / "made_at_cad73ab"
sys.path.append(str(ROOT / "tests"))


class Trace:
    """Records the files entered and the changes between packages while it is active."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.changes = 0
        self.on = False

    def look(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event not in ("call", "return"):
            return
        here = frame.f_code.co_filename
        if not here.startswith(SOURCES):
            return
        if event == "call":
            self.files.add(here.removeprefix(SOURCES + "/"))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(SOURCES):
            caller = caller.f_back
        if caller is not None and package(caller.f_code.co_filename) != package(here):
            self.changes += 1

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.on = True
        yield
        self.on = False


def package(path: str) -> str:
    """The package of a source file, or the module at the top level."""
    return path.removeprefix(SOURCES + "/").partition("/")[0]


def chat(trace: Trace) -> None:
    """One chat request, answered through the server's application."""
    import httpx

    from faquant.engine.async_engine import AsyncEngine
    from faquant.engine.engine import Engine
    from faquant.model.load import load
    from faquant.server.app import make_app
    from faquant.server.config import ServerConfig
    from faquant.server.service import Service
    from faquant.text.tokenizer import Tokenizer
    from oracles.tiny_tokenizer import write_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        tokenizer = Tokenizer.from_directory(Path(directory))
    engine = AsyncEngine(Engine(load(DATA / "default"), tokenizer))
    engine.start()
    app = make_app(Service(engine, ServerConfig("tiny")))
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=body)

    asyncio.run(ask()).raise_for_status()  # so that everything that is made once exists
    with trace():
        asyncio.run(ask()).raise_for_status()
    engine.shutdown(timeout=10)


def quantize(trace: Trace) -> None:
    """The tiny model by the recipe `default`."""
    from faquant.quantization.pipeline import quantize as run
    from faquant.recipe import RECIPES

    with tempfile.TemporaryDirectory() as directory, trace():
        run(DATA / "float", Path(directory) / "out", RECIPES["default"], [[1, 2, 3, 4, 5, 6, 7, 8]])


def main() -> None:
    for name, work in (("a chat request", chat), ("quantize", quantize)):
        trace = Trace()
        threading.setprofile(trace.look)
        sys.setprofile(trace.look)
        work(trace)
        sys.setprofile(None)
        threading.setprofile(None)
        print(f"{name}: {len(trace.files)} files, {trace.changes} changes between packages")
        if "--files" in sys.argv:
            print(*sorted(trace.files), sep="\n")


if __name__ == "__main__":
    main()
