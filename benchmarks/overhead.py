"""Overhead of the server and of grammars: milliseconds per token over HTTP, and per step with 8 answers.

python benchmarks/overhead.py [--int8 DIR] [--tokens 256] [--rounds 5] [--steps 300] [--threads N] [--json FILE]

Server: stream one completion, and measure the time between its first and last token, minus the engine's own step times,
per token. Grammars: two engines with 8 sequences each run alternately, one with answers that are or may become tool
calls, one with free text; measure the time per step outside the model, for decode-only steps: wall time, and the CPU
time of the thread that steps, which other processes disturb less. The default model is the demo model.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from end_to_end import add_models, models
from openai import AsyncOpenAI
from server_soak import SCHEMA, Server
from timing import finish, start

from faquant import SamplingParams
from faquant.engine.engine import Engine
from faquant.engine.scheduler import Work
from faquant.kernels.arrays import Array
from faquant.model.load import Model, load
from faquant.structured.structured_output import StructuredOutput
from faquant.structured.tools.calls import Tool, ToolCalls
from faquant.structured.tools.conversation import Conversation
from faquant.text.tokenizer import Tokenizer

SEQUENCES = 8
NOTES = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "notes": {"type": "array", "minItems": 2, "maxItems": 6, "items": {"type": "string", "maxLength": 120}},
        "importance": {"type": "integer", "minimum": 1, "maximum": 10},
    },
    "required": ["title", "notes", "importance"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", SCHEMA), Tool("remember", NOTES))
QUESTION = "Remember in several notes what a traveller should know about Paris, and say how the weather will be there."
DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "T 0.8": {"temperature": 0.8},
    "T 0.8, top_p": {"temperature": 0.8, "top_p": 0.95},
}


async def over_http(directory: Path, threads: int, tokens: int, rounds: int) -> list[float]:
    """Seconds per token of a stream in addition to the engine's steps, by round."""
    server = Server(directory, threads)
    await server.start()
    found = []
    try:
        client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for number in range(rounds + 1):
            times: list[float] = []
            stream = await client.completions.create(
                model=directory.resolve().name,
                prompt=f"{number} stories of the sea:",
                max_tokens=tokens,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async for _ in stream:
                times.append(time.perf_counter())
                if len(times) == 1:
                    before = await server.metrics()  # after the prompt's step, which is longer
            after = await server.metrics()
            steps, taken = (
                after[f"faquant_{name}_total"] - before[f"faquant_{name}_total"] for name in ("steps", "step_seconds")
            )
            found.append((times[-1] - times[0]) / (tokens - 1) - taken / steps)
    finally:
        server.kill()
    return found[1:]


class TimedEngine(Engine):
    """An engine that knows the CPU time of its thread in the model."""

    cpu_seconds = 0.0

    def _run(self, work: Sequence[Work]) -> Array:
        begin = time.thread_time()
        logits = super()._run(work)
        self.cpu_seconds += time.thread_time() - begin
        return logits


class Group:
    """An engine that always decodes `count` sequences."""

    def __init__(self, model: Model, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._engine, self._params, self._number = TimedEngine(model, tokenizer), params, 0
        self._conversation = Conversation(tokenizer)
        self._tools = [
            {"type": "function", "function": {"name": tool.name, "description": tool.schema}} for tool in TOOLS
        ]

    def step(self) -> tuple[float, float, float] | None:
        """Seconds in the model and outside of it, and CPU time outside of it; None if the step included a prompt."""
        state = self._engine.state()
        for _ in range(SEQUENCES - state.running - state.waiting):
            self._number += 1
            question = [{"role": "user", "content": f"{self._number}. {QUESTION}"}]
            params = SamplingParams(**{**vars(self._params), "seed": self._number})
            self._engine.add(self._conversation.encode(question, self._tools), params)
        before, begin, in_model = self._engine.stats(), time.thread_time(), self._engine.cpu_seconds
        self._engine.step()
        cpu = time.thread_time() - begin - (self._engine.cpu_seconds - in_model)
        after = self._engine.stats()
        if after.prefilled_tokens > before.prefilled_tokens:
            return None
        wall = after.model_seconds - before.model_seconds
        return wall, after.step_seconds - before.step_seconds - wall, cpu


def unbounded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without maxLength."""
    return {
        key: unbounded(value) if isinstance(value, dict) else value
        for key, value in schema.items()
        if key != "maxLength"
    }


def of_grammar(
    model: Model, tokenizer: Tokenizer, steps: int, tools: Sequence[Tool], forced: bool, draw: dict[str, Any]
) -> dict[str, float]:
    """Median and mean seconds outside the model with and without a grammar, median CPU time, and median of a whole step
    without."""
    calls = ToolCalls(tuple(tools), Conversation(tokenizer).format or "hermes", forced=forced)
    plain = SamplingParams(max_tokens=150, ignore_eos=True, **draw)
    constrained = SamplingParams(max_tokens=150, structured_output=StructuredOutput(tool_calls=calls), **draw)
    groups = {"without": Group(model, tokenizer, plain), "with": Group(model, tokenizer, constrained)}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in groups}
    while min(map(len, times.values())) < steps:
        for name, group in groups.items():
            taken = group.step()
            if taken is not None:
                times[name].append(taken)
    found = {"step": statistics.median(inside + outside for inside, outside, _ in times["without"])}
    for kind, average, column in (
        ("median", statistics.median, 1),
        ("mean", statistics.fmean, 1),
        ("CPU", statistics.median, 2),
    ):
        for name in groups:
            found[f"{kind} {name}"] = average([each[column] for each in times[name]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    arguments = start(parser)
    _, int8, _ = models(arguments)
    found = asyncio.run(over_http(int8, arguments.threads, arguments.tokens, arguments.rounds))
    print(f"the server adds {statistics.median(found) * 1e3:.2f} ms per token, one stream; rounds {found}", flush=True)
    rows: list[dict[str, object]] = [{"server": found}]
    model, tokenizer = load(int8), Tokenizer.from_directory(int8)
    print(
        f"\n{SEQUENCES} sequences, ms outside the model{'without':>17}{'with':>8}   added, of a step, median and mean; "
        "CPU time without, with"
    )
    plain_strings = [Tool("weather", unbounded(SCHEMA)), Tool("remember", unbounded(NOTES))]
    for kind, tools, forced in (
        ("calls, plain strings", plain_strings, True),
        ("calls, maxLength", TOOLS, True),
        ("free text or calls", TOOLS, False),
    ):
        for name, draw in DRAWS.items():
            row = of_grammar(model, tokenizer, arguments.steps, tools, forced, draw)
            rows.append({"grammar": kind, "draw": name, **row})
            without, median, mean = (row[key] for key in ("median without", "median with", "mean with"))
            added = [(median - without) / row["step"], (mean - row["mean without"]) / row["step"]]
            times = f"{without * 1e3:11.2f}{median * 1e3:8.2f}"
            cpu = f"{row['CPU without'] * 1e3:10.2f}{row['CPU with'] * 1e3:8.2f}"
            print(f"{f'{kind}, {name}':40}{times}{added[0]:10.1%}{added[1]:8.1%}{cpu}", flush=True)
    finish(arguments, rows)


if __name__ == "__main__":
    main()
