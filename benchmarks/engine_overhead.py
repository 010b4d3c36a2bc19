"""The engine's overhead in addition to the model, and the savings from equal prompts.

python benchmarks/engine_overhead.py [--int8 DIR] [--rounds 5] [--steps 300] [--threads N] [--json FILE]

Measures, for decode-only steps of 32 sequences and several sampling settings, the share outside the model, with and
without the C++ sampler; the time to check and admit a request for 128 answers; the time of a prompt lookup; and the
time until eight answers to one prompt, or to eight prompts, have two tokens each. The default model is the demo model.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from end_to_end import add_models, models
from overhead import DRAWS
from timing import finish, start

from faquant import SamplingParams
from faquant.engine.engine import Engine
from faquant.engine.speculation import PromptLookup
from faquant.model.load import load
from faquant.sampling import draw as drawing
from faquant.text.tokenizer import Tokenizer

SEQUENCES, ANSWERS, MOST_ANSWERS = 32, 8, 128
MORE_DRAWS: dict[str, dict[str, Any]] = {
    **DRAWS,
    "T 0.8, logprobs": {"temperature": 0.8, "logprobs": 5},
    "T 0.8, presence": {"temperature": 0.8, "presence_penalty": 0.5},
    "T 0.8, repetition": {"temperature": 0.8, "repetition_penalty": 1.1},
}
PROMPTS = (20, 100, 250, 1000)
LOOKUPS = (8000, 131_072)


class Clock:
    """Wraps a module and adds up the seconds that its functions take."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


@contextmanager
def drawing_timed() -> Iterator[Clock]:
    """Seconds in the C++ sampler."""
    module: Any = drawing
    clock = module._C = Clock(module._C)
    try:
        yield clock
    finally:
        module._C = clock._module


def of_engine(engine: Engine, rounds: int, draw: dict[str, Any]) -> dict[str, float]:
    """For decode-only steps of 32 sequences: median seconds, and the shares outside the model."""
    steps: list[tuple[float, float, float]] = []
    vocabulary, random = engine.model.config.vocab_size, Random(0)
    with drawing_timed() as clock:
        for _ in range(rounds):
            for seed in range(SEQUENCES):
                prompt = random.choices(range(vocabulary), k=40)
                engine.add(prompt, SamplingParams(max_tokens=60, ignore_eos=True, seed=seed, **draw))
            while engine.has_work:
                before, clock.seconds = engine.stats(), 0.0
                engine.step()
                after = engine.stats()
                taken = after.step_seconds - before.step_seconds
                if after.generated_tokens - before.generated_tokens == SEQUENCES and taken:
                    model = after.model_seconds - before.model_seconds
                    steps.append((taken, 1 - model / taken, 1 - (model + clock.seconds) / taken))
    step, outside, beside = (statistics.median(values) for values in zip(*steps, strict=True))
    return {"step": step, "outside model": outside, "outside model and draw": beside}


def of_admission(engine: Engine, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds to request 128 answers: in `check`, which can run in any thread, and in the engine's thread."""
    vocabulary, random = engine.model.config.vocab_size, Random(0)
    short, long = (random.choices(range(vocabulary), k=length) for length in (100, 8000))
    kinds: dict[str, tuple[list[int], dict[str, Any]]] = {
        "plain": (short, {}),
        "64 stop strings": (short, {"stop": tuple("a" * 1000 + str(number) for number in range(64))}),
        "a bias of every token": (short, {"logit_bias": dict.fromkeys(range(vocabulary), 1.0)}),
        "a penalty on 8,000 tokens": (long, {"repetition_penalty": 1.1}),
    }
    found = {}
    for name, (prompt, more) in kinds.items():
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            checked = engine.check(prompt, SamplingParams(n=MOST_ANSWERS, max_tokens=5, **more))
            middle = time.perf_counter()
            requests = engine.admit(checked)
            times.append((middle - begin, time.perf_counter() - middle))
            for request in requests:
                engine.abort(request)
        found[name] = {
            key: statistics.median(some) for key, some in zip(("check", "admit"), zip(*times, strict=True), strict=True)
        }
    return found


def of_lookup(length: int, steps: int) -> dict[str, float]:
    """Seconds for the first lookup in a text, and median seconds for later ones."""
    random = Random(0)
    words = [random.choices(range(49_000), k=random.randint(1, 12)) for _ in range(length // 40)]
    text = [token for _ in range(length) for token in random.choice(words)][:length]
    lookup, times = PromptLookup(), []
    for number in range(steps):
        begin = time.perf_counter()
        lookup.propose(text, 4)
        times.append(time.perf_counter() - begin)
        text.append(text[7 * number % length])
    return {"first": times[0], "further": statistics.median(times[1:])}


def of_equal_prompts(engine: Engine, length: int, rounds: int) -> dict[str, float]:
    """Median seconds until eight answers have two tokens each: to one prompt, and to eight of its length."""
    vocabulary, random = engine.model.config.vocab_size, Random(length)
    times: dict[str, list[float]] = {"one prompt": [], "eight prompts": []}
    for number in range(rounds):
        for name, prompts in (("one prompt", 1), ("eight prompts", ANSWERS)):
            params = SamplingParams(n=ANSWERS // prompts, max_tokens=2, ignore_eos=True, seed=number)
            asked = [random.choices(range(vocabulary), k=length) for _ in range(prompts)]
            begin = time.perf_counter()
            for prompt in asked:
                engine.add(prompt, params)
            while engine.has_work:
                engine.step()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(some) for name, some in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    arguments = start(parser)
    _, int8, _ = models(arguments)
    rows: list[dict[str, object]] = []
    engine = Engine(load(int8), Tokenizer.from_directory(int8))
    print(f"\n{SEQUENCES} sequences{'ms a step':>20}   outside the model   outside model and draw")
    for name, draw in MORE_DRAWS.items():
        row = of_engine(engine, arguments.rounds, draw)
        rows.append({"engine": name, **row})
        outside, beside = row["outside model"], row["outside model and draw"]
        print(f"{name:20}{row['step'] * 1e3:12.1f}{outside:20.1%}{beside:25.1%}", flush=True)
    print(f"\n{MOST_ANSWERS} answers asked for, ms{'to check':>12}{'to admit':>10}")
    for name, row in of_admission(engine, arguments.rounds).items():
        rows.append({"admission": name, **row})
        print(f"{name:28}{row['check'] * 1e3:10.1f}{row['admit'] * 1e3:10.1f}")
    print(f"\ndraft by prompt lookup  {'first, ms':>14}{'further, µs':>13}")
    for length in LOOKUPS:
        row = of_lookup(length, arguments.steps)
        rows.append({"lookup": length, **row})
        print(f"{f'in {length:,} tokens':24}{row['first'] * 1e3:14.2f}{row['further'] * 1e6:13.1f}")
    print(f"\n{ANSWERS} answers, two tokens, ms{'one prompt':>14}{'eight prompts':>15}")
    for length in PROMPTS:
        row = of_equal_prompts(engine, length, arguments.rounds)
        rows.append({"prompt": length, **row})
        one, eight = row["one prompt"], row["eight prompts"]
        print(f"{f'of {length:,} tokens':26}{one * 1e3:14.0f}{eight * 1e3:15.0f}", flush=True)
    finish(arguments, rows)


if __name__ == "__main__":
    main()
