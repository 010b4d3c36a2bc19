"""The engine in its own thread, for callers in event loops."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from ..errors import DeviceError, FaquantError
from ..sampling.params import SamplingParams
from ..structured.structured_output import StructuredOutput
from .engine import CheckedPrompt, Engine
from .request import Output, Request

log = logging.getLogger(__name__)

_COMPILERS = 2
_LONG_PROMPTS = 4096
"""Prompts with this many tokens in total are checked in a thread."""
_ANSWER_COST = 32
"""Setting up one answer costs as much time as checking this many prompt tokens."""


class EngineStoppedError(FaquantError):
    """The engine was shut down, or failed, before the answer was finished."""


class AsyncEngine:
    """Serves any number of tasks in any number of event loops. The thread runs from `start` to `shutdown`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._todo: deque[Callable[[], object]] = deque()  # run by the thread; nothing else touches the engine
        self._streams: dict[Request, _Stream] = {}
        self._wake = threading.Condition()  # guards all attributes except _streams, which only the thread uses
        self._callers: set[_Stream] = set()
        self._draining = self._abandoning = False
        self._thread = threading.Thread(target=self._run, name="faquant-engine", daemon=True)
        # A separate pool, because compiling a structure can block a thread for seconds.
        self._compilers = ThreadPoolExecutor(_COMPILERS, "faquant-compile")
        self._compiling: dict[Future[Any], int] = {}  # with the number of tasks that wait for each

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and accepts requests."""
        return self._thread.is_alive() and not self._draining

    async def generate(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Output, None]:
        """Yield the output of each step for a prompt of token ids, until its params.n answers have finished.

        If the caller closes the iterator or is cancelled, the answers' pages are freed before the next step.

        Raises:
            UsageError: the request cannot be answered.
            EngineStoppedError: the engine was shut down or failed.
            FaquantError: an answer could not be finished.
        """
        async with aclosing(self.answers(await self.check([prompt], params))) as outputs:
            async for _, output in outputs:
                yield output

    async def check(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[CheckedPrompt]:
        """Check prompts for `answers`.

        Raises:
            UsageError: the request cannot be answered.
            EngineStoppedError: the engine was shut down.
        """
        structure = params.structured_output
        for part in () if structure is None else structure.parts:
            if part.tool_calls is None or part.tool_calls.tools:
                await self.compile(part)
        if structure is None and sum(len(prompt) + params.n * _ANSWER_COST for prompt in prompts) < _LONG_PROMPTS:
            return self._check(prompts, params)
        return await asyncio.to_thread(self._check, prompts, params)

    def _check(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[CheckedPrompt]:
        return [self.engine.check(prompt, params) for prompt in prompts]

    async def compile(self, structure: StructuredOutput) -> None:
        """Wait until a structure is compiled. If every waiting task is cancelled first, compilation does not start.

        Raises:
            UsageError: the structure cannot be enforced.
            EngineStoppedError: the engine was shut down.
        """
        grammars = await asyncio.to_thread(lambda: self.engine.grammars)
        with self._wake:
            if self._draining:
                raise EngineStoppedError("The engine is shutting down, or has failed.")
            compiled = grammars.compiled(structure, self._compilers.submit)
            self._compiling[compiled] = self._compiling.get(compiled, 0) + 1
        done = asyncio.wrap_future(compiled)
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait([done])
        finally:
            with self._wake:
                self._compiling[compiled] -= 1
                if not self._compiling[compiled]:
                    del self._compiling[compiled]
                    compiled.cancel()
        if compiled.cancelled():
            raise EngineStoppedError("The engine was shut down before the answer was started.")
        compiled.result()

    async def answers(self, prompts: Sequence[CheckedPrompt]) -> AsyncGenerator[tuple[int, Output], None]:
        """Like `generate`, for several prompts at once; yields the index of the prompt with each output."""
        stream = _Stream(asyncio.get_running_loop())
        with self._wake:
            if self._draining:
                raise EngineStoppedError("The engine is shutting down, or has failed.")
            self._callers.add(stream)
            self._todo.append(lambda: self._begin(stream, prompts))
            self._wake.notify()
        try:
            unfinished = sum(checked.params.n for checked in prompts)
            while unfinished:
                output = await stream.next()
                if output.request.error is not None:
                    raise output.request.error
                unfinished -= output.finish_reason is not None
                yield stream.places[output.request], output
        finally:
            with self._wake:
                self._callers.discard(stream)
                self._todo.append(lambda: self._cancel(stream))
                self._wake.notify()

    def shutdown(self, drain: bool = False, timeout: float | None = None) -> bool:
        """Stop the thread: immediately, or with `drain` after all requests have been answered. Refuse new requests.

        Returns:
            Whether the thread ended within `timeout` seconds.
        """
        with self._wake:
            self._draining = True
            self._abandoning |= not drain
            self._wake.notify()
            for compiled in self._compiling:
                compiled.cancel()
        self._compilers.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout)
        elif self._thread.ident is None:  # never started
            self._end()
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while todo := self._wait():
                for what in todo:
                    what()
        except Exception:  # nothing else would report it; _end notifies the callers
            log.exception("The engine has failed permanently")
        finally:
            self._end()

    def _wait(self) -> list[Callable[[], object]]:
        """Wait for work. Return the callers' tasks followed by a step, or an empty list to end the thread."""
        with self._wake:
            while not (self._todo or self._draining or self.engine.has_work):
                self._wake.wait()
            if self._abandoning or (self._draining and not self._todo and not self.engine.has_work):
                return []
            todo = [*self._todo, self._step]
            self._todo.clear()
            return todo

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except Exception as error:
            log.exception("A step of the engine failed")
            self._fail(error)
            if isinstance(error, DeviceError):
                raise  # every further step would fail: end the thread, so that health checks see it
        else:
            self._deliver([(self._streams.get(output.request), output) for output in outputs])
            for output in outputs:
                if output.finish_reason is not None:
                    self._streams.pop(output.request, None)

    def _begin(self, stream: "_Stream", prompts: Sequence[CheckedPrompt]) -> None:
        if stream.cancelled:
            return
        try:
            for place, checked in enumerate(prompts):
                for request in self.engine.admit(checked):
                    self._streams[request] = stream
                    stream.places[request] = place
        except Exception as error:
            self._deliver([(stream, error)])

    def _cancel(self, stream: "_Stream") -> None:
        stream.cancelled = True
        for request in [request for request, some in self._streams.items() if some is stream]:
            self.engine.abort(request)
            del self._streams[request]

    def _fail(self, error: Exception) -> None:
        """Fail the requests that took part in a failed step. Waiting requests continue."""
        stopped = EngineStoppedError(f"The engine failed: {error}")
        self.engine.abort_running()
        ended = [request for request in self._streams if request.finish_reason is not None]  # in the step or aborted
        self._deliver([(self._streams.pop(request), stopped) for request in ended])

    def _end(self) -> None:
        """Fail all remaining callers when the thread has ended, for whatever reason."""
        with self._wake:
            self._draining = True
            callers = list(self._callers)
            self._todo.clear()
        stopped = EngineStoppedError("The engine was shut down or failed before the answer was finished.")
        self._deliver([(stream, stopped) for stream in callers])
        for request in list(self._streams):
            self.engine.abort(request)
        self._streams.clear()

    def _deliver(self, items: Sequence[tuple["_Stream | None", Output | Exception]]) -> None:
        """Put the items into their streams, with one call per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Output | Exception]]] = {}
        for stream, item in items:
            if stream is not None:
                by_loop.setdefault(stream.loop, []).append((stream, item))
        for loop, parts in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, parts)
            except RuntimeError:  # the loop is closed, so nothing waits there any more
                for stream, _ in parts:
                    self._cancel(stream)


class _Stream:
    """The outputs that one caller has not read yet. `places` maps each request to the index of its prompt."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.cancelled = False
        self.places: dict[Request, int] = {}
        self.queue: asyncio.Queue[Output | Exception] = asyncio.Queue()

    async def next(self) -> Output:
        item = await self.queue.get()
        if isinstance(item, Exception):
            raise item
        return item


def _put_all(parts: Sequence[tuple[_Stream, Any]]) -> None:
    for stream, item in parts:
        stream.queue.put_nowait(item)
