"""Many concurrent tasks, some of which are cancelled; each gets the answer that it would get alone."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from faquant.engine.async_engine import AsyncEngine, EngineStoppedError
from faquant.engine.request import Output
from faquant.engine.scheduler import Work
from faquant.errors import DeviceError, UsageError
from faquant.sampling.params import SamplingParams
from faquant.structured import grammar
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.vocabulary import Vocabulary
from oracles.random_decoder import tokens
from oracles.tiny_engine import Asked, TinyEngine
from oracles.tiny_server import BytesEngine

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
NINE = replace(GREEDY, max_tokens=9)


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(TinyEngine(pages=20))
    engine.start()
    yield engine
    assert engine.shutdown(timeout=30)


def prompt(number: int, length: int = 50) -> tuple[int, ...]:
    return tuple(tokens(length, seed=number).tolist())


async def answer(engine: AsyncEngine, ids: tuple[int, ...], params: SamplingParams = GREEDY) -> tuple[list[int], str]:
    outputs = [output async for output in engine.generate(ids, params)]
    assert [output.finish_reason is not None for output in outputs] == [False] * (len(outputs) - 1) + [True]
    return [token for output in outputs for token in output.token_ids], "".join(output.text for output in outputs)


async def nothing_held(engine: AsyncEngine) -> None:
    for _ in range(1000):
        if not engine.engine.has_work and engine.engine.state().used_pages == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("pages are still held")


def test_many_tasks_get_their_own_answers(engine: AsyncEngine) -> None:
    async def main() -> None:
        got = await asyncio.gather(*[answer(engine, prompt(number, 10 + 9 * number)) for number in range(20)])
        for number, (ids, text) in enumerate(got):
            alone = Asked(prompt(number, 10 + 9 * number), GREEDY).alone()
            assert (tuple(ids), text) == (alone.token_ids, alone.text)

    asyncio.run(main())


def test_a_cancelled_task_frees_its_pages(engine: AsyncEngine) -> None:
    async def main() -> None:
        endless = replace(GREEDY, max_tokens=2000)
        for _ in range(3):
            tasks = [asyncio.create_task(answer(engine, prompt(number), endless)) for number in range(6)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await nothing_held(engine)
        stream = engine.generate(prompt(1), endless)
        await anext(stream)
        await stream.aclose()
        await nothing_held(engine)
        await answer(engine, prompt(0))

    asyncio.run(main())


def test_several_event_loops(engine: AsyncEngine) -> None:
    got: dict[int, list[int]] = {}

    def run(number: int) -> None:
        got[number] = asyncio.run(answer(engine, prompt(number)))[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert tuple(got[number]) == Asked(prompt(number), GREEDY).alone().token_ids


def test_a_closed_event_loop_frees_its_pages(engine: AsyncEngine) -> None:
    loop = asyncio.new_event_loop()
    stream = engine.generate(prompt(1), replace(GREEDY, max_tokens=2000))
    loop.run_until_complete(anext(stream))
    loop.close()
    asyncio.run(nothing_held(engine))


def test_a_request_that_cannot_be_answered_is_refused_at_once(engine: AsyncEngine) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="no tokens"):
            await answer(engine, ())

    asyncio.run(main())


def test_a_failed_step_ends_only_the_running_requests(engine: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    run, failures = engine.engine._decoder.run, iter([True])

    def failing(chunks: object) -> object:
        if next(failures, False):
            raise RuntimeError("out of luck")
        return run(chunks)  # type: ignore[arg-type]

    engine.engine._decoder.run = failing  # type: ignore[assignment, method-assign]

    async def main() -> None:
        with pytest.raises(EngineStoppedError, match="out of luck"):
            await answer(engine, prompt(0))
        ids, _ = await answer(engine, prompt(1))
        assert tuple(ids) == Asked(prompt(1), GREEDY).alone().token_ids

    asyncio.run(main())
    assert "A step of the engine failed" in caplog.text


def test_a_lost_device_ends_the_engine_so_that_health_checks_see_it(engine: AsyncEngine) -> None:
    def failing(chunks: object) -> object:
        raise DeviceError("The GPU failed: CUDA error: an illegal memory access was encountered.")

    engine.engine._decoder.run = failing  # type: ignore[assignment, method-assign]

    async def main() -> None:
        with pytest.raises(EngineStoppedError, match="an illegal memory access"):
            await answer(engine, prompt(0))
        with pytest.raises(EngineStoppedError):
            await answer(engine, prompt(1))

    asyncio.run(main())
    engine._thread.join(30)
    assert not engine.alive


def test_an_answer_that_ends_in_a_failed_step_raises(engine: AsyncEngine) -> None:
    accept = engine.engine._accept

    def failing(item: Work, *rest: object) -> Output:
        if item.request.params.max_tokens == 9 and item.request.remaining_tokens == 6:
            raise RuntimeError("out of luck")
        return accept(item, *rest)  # type: ignore[arg-type]

    engine.engine._accept = failing  # type: ignore[method-assign, assignment]

    async def main() -> None:
        # Both in one step: the first one's last token and the failure. So they start in one step.
        both_asked = threading.Event()
        with engine._wake:
            engine._todo.append(both_asked.wait)
            engine._wake.notify()
        asked = [answer(engine, prompt(0, 5), replace(GREEDY, max_tokens=4)), answer(engine, prompt(1, 5), NINE)]
        tasks = [asyncio.create_task(one) for one in asked]
        while len(engine._callers) < 2:
            await asyncio.sleep(0.001)
        both_asked.set()
        got = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert [type(some) for some in got] == [EngineStoppedError, EngineStoppedError]
        await nothing_held(engine)

    asyncio.run(main())


def test_a_permanently_failing_scheduler_leaves_no_caller_waiting(engine: AsyncEngine) -> None:
    def failing() -> object:
        raise RuntimeError("out of luck")

    engine.engine._scheduler.schedule = failing  # type: ignore[method-assign, assignment]

    async def main() -> None:
        got = await asyncio.wait_for(
            asyncio.gather(*[answer(engine, prompt(number)) for number in range(3)], return_exceptions=True), 30
        )
        assert [type(some) for some in got] == [EngineStoppedError] * 3
        await nothing_held(engine)

    asyncio.run(main())


class Panic(BaseException):
    """Not an Exception, so nothing catches it."""


@pytest.mark.parametrize("error", [Panic, RuntimeError])
def test_a_dead_thread_leaves_no_caller_waiting(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    engine = AsyncEngine(TinyEngine())

    def failing(*_: object) -> object:
        raise error("out of luck")

    engine.engine.step = failing  # type: ignore[method-assign, assignment]
    engine.engine.abort_running = failing  # type: ignore[method-assign, assignment]

    async def main() -> None:
        engine.start()
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(answer(engine, prompt(0)), 30)
        with pytest.raises(EngineStoppedError, match="has failed"):
            await asyncio.wait_for(answer(engine, prompt(1)), 30)
        assert not engine.alive

    asyncio.run(main())
    assert engine.shutdown(timeout=30)
    assert not engine.engine.has_work


def test_an_engine_that_never_started_leaves_no_caller_waiting() -> None:
    async def main() -> None:
        engine = AsyncEngine(TinyEngine())
        task = asyncio.create_task(answer(engine, prompt(0)))
        await asyncio.sleep(0.01)
        assert engine.shutdown()
        with pytest.raises(EngineStoppedError):
            await asyncio.wait_for(task, 30)

    asyncio.run(main())


def test_shutting_down_ends_or_drains() -> None:
    async def main(drain: bool) -> list[object]:
        engine = AsyncEngine(TinyEngine())
        engine.start()
        tasks = [asyncio.create_task(answer(engine, prompt(number))) for number in range(3)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(engine.shutdown, drain, 30)
        with pytest.raises(EngineStoppedError, match="shutting down"):
            await answer(engine, prompt(5))
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    for got in asyncio.run(main(drain=True)):
        assert isinstance(got, tuple)
        assert len(got[0]) == 20
    for got in asyncio.run(main(drain=False)):
        assert isinstance(got, EngineStoppedError | tuple)


class TestStructures:
    """A structure that is slow to compile delays only the requests that need it."""

    SLOW, OTHER, QUICK = (StructuredOutput(choice=(text,)) for text in ("ab", "ba", "a"))

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StructuredOutput]]:
        """The structures whose compilation has started; the slow ones continue at the end of the test."""
        begun: list[StructuredOutput] = []
        go_on = threading.Event()
        plain = grammar.CompiledGrammar

        def compiled(vocabulary: Vocabulary, wanted: StructuredOutput) -> object:
            begun.append(wanted)
            assert wanted == self.QUICK or go_on.wait(30)
            return plain(vocabulary, wanted)

        monkeypatch.setattr(grammar, "CompiledGrammar", compiled)
        yield begun
        go_on.set()

    @staticmethod
    def ask(engine: AsyncEngine, wanted: StructuredOutput) -> "asyncio.Task[object]":
        params = SamplingParams(max_tokens=5, structured_output=wanted)
        return asyncio.create_task(engine.check([BytesEngine().tokenizer.encode("x")], params))

    def test_a_compiled_structure_does_not_wait(self, begun: list[StructuredOutput]) -> None:
        async def main() -> None:
            engine = AsyncEngine(BytesEngine(pages=20))
            await self.ask(engine, self.QUICK)
            slow = [self.ask(engine, wanted) for wanted in (self.SLOW, self.SLOW, self.SLOW, self.OTHER)]
            while len(begun) < 3:
                await asyncio.sleep(0.001)
            await asyncio.wait_for(self.ask(engine, self.QUICK), 5)
            assert begun.count(self.SLOW) == begun.count(self.OTHER) == 1
            assert not any(task.done() for task in slow)
            engine.shutdown()

        asyncio.run(main())

    def test_compilation_does_not_start_if_all_callers_left(self, begun: list[StructuredOutput]) -> None:
        async def main() -> None:
            engine = AsyncEngine(BytesEngine(pages=20))
            busy = [self.ask(engine, wanted) for wanted in (self.SLOW, self.OTHER)]
            while len(begun) < 2:
                await asyncio.sleep(0.001)
            leaving, staying = (self.ask(engine, self.QUICK) for _ in range(2))
            await asyncio.sleep(0.1)
            leaving.cancel()
            await asyncio.sleep(0.1)
            assert not staying.done()
            staying.cancel()
            await asyncio.wait([leaving, staying])
            assert not engine._compiling.keys() - {engine.engine.grammars.compiled(each) for each in begun}
            assert self.QUICK not in begun
            engine.shutdown()
            await asyncio.wait([task for task in busy if task.cancel()])

        asyncio.run(main())

    def test_a_shutdown_is_reported(self, begun: list[StructuredOutput]) -> None:
        async def main() -> None:
            engine = AsyncEngine(BytesEngine(pages=20))
            busy = [self.ask(engine, wanted) for wanted in (self.SLOW, self.OTHER)]
            while len(begun) < 2:
                await asyncio.sleep(0.001)
            queued = self.ask(engine, self.QUICK)
            await asyncio.sleep(0.1)
            engine.shutdown()
            for task in (queued, self.ask(engine, self.QUICK)):
                with pytest.raises(EngineStoppedError):
                    await asyncio.wait_for(task, 5)
            await asyncio.wait([task for task in busy if task.cancel()])

        asyncio.run(main())
