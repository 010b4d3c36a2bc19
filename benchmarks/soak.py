"""Ten thousand requests through one engine, a fifth of them cancelled, to check for leaks and changed answers.

python benchmarks/soak.py [--int8 DIR] [--requests 10000] [--kinds 150] [--pages 9] [--seed 0] [--threads N]
                          [--json FILE]

Requests are drawn from `kinds` kinds, each of which is first answered alone; prompts share prefixes, answers are greedy
or sampled with a seed. The cache is small, so that requests are preempted. The state is checked after every step. The
program fails (exit status 1) on the first answer that differs in any bit from the one alone, including logprobs, and if
pages or memory have leaked at the end. The default model is the demo model.
"""

import argparse
import sys
import time
from random import Random

from end_to_end import add_models, models
from timing import finish, start

from faquant.engine.engine import PAGE_SIZE, Engine
from faquant.engine.engine_config import EngineConfig
from faquant.engine.request import Request
from faquant.evaluation.texts import builtin_texts
from faquant.model.load import load
from faquant.sampling.params import SamplingParams
from faquant.text.tokenizer import Tokenizer

MAX_WAITING = 64
CANCELLED = 0.2
ALLOWED_GROWTH = 64 << 20
"""Allowed growth of resident memory in bytes after the first fifth of the requests: not all freed memory is
returned."""

Kind = tuple[tuple[int, ...], SamplingParams]
Answer = tuple[tuple[int, ...], object, str]


def kinds(texts: list[list[int]], count: int, random: Random) -> list[Kind]:
    """Prompts of 5 to 400 tokens, half of them with one of a few common prefixes."""
    beginnings = [text[:260] for text in texts]
    made = []
    for number in range(count):
        text = random.choice(texts)
        begin = random.randrange(len(text) - 400)
        own = text[begin : begin + random.choice((5, 20, 60, 140))]
        prompt = (*(random.choice(beginnings) if random.random() < 0.5 else ()), *own)
        temperature = random.choice((0.0, 0.0, 0.7, 1.2))
        params = SamplingParams(
            temperature=temperature,
            top_p=random.choice((1.0, 0.9)),
            seed=number,
            max_tokens=random.choice((1, 4, 4, 12, 12, 12, 32, 32, 32, 300)),
            logprobs=1,
        )
        made.append((prompt, params))
    return made


def answer(request: Request) -> Answer:
    completion = request.completion()
    return completion.token_ids, completion.logprobs, completion.finish_reason


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_models(parser)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kinds", type=int, default=150)
    parser.add_argument("--pages", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    arguments = start(parser)
    source, int8, _ = models(arguments)
    tokenizer, model, random = Tokenizer.from_directory(source), load(int8), Random(arguments.seed)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in builtin_texts().values()]
    asked = kinds(texts, arguments.kinds, random)

    alone: list[Answer] = []
    lone = Engine(model, tokenizer, EngineConfig(max_num_seqs=1, max_model_len=768, enable_prefix_caching=False))
    for prompt, params in asked:
        (request,) = lone.add(prompt, params)
        while lone.has_work:
            lone.step()
        alone.append(answer(request))
    print(f"{len(asked)} kinds answered alone", flush=True)

    memory = arguments.pages * PAGE_SIZE * lone.bytes_per_token
    config = EngineConfig(max_num_seqs=24, max_model_len=768, kv_cache_memory=memory, speculative_tokens=3)
    engine = Engine(model, tokenizer, config)
    running: dict[Request, int] = {}
    doomed: dict[Request, int] = {}  # and the number of steps before they are cancelled
    begun = compared = cancelled = 0
    before, begin = 0, time.monotonic()
    while begun < arguments.requests or running:
        while begun < arguments.requests and len(running) < MAX_WAITING and random.random() < 0.8:
            number = random.randrange(len(asked))
            (request,) = engine.add(*asked[number])
            running[request] = number
            if random.random() < CANCELLED:
                doomed[request] = random.randrange(12)
            begun += 1
            if begun == arguments.requests // 5:
                before = resident()
            if begun % 1000 == 0:
                print(
                    f"{begun:6} begun, {time.monotonic() - begin:5.0f} s, {resident() >> 20} MiB, {engine.stats()}",
                    flush=True,
                )
        for request in list(doomed):
            doomed[request] -= 1
            if doomed[request] < 0:
                engine.abort(request)
                del doomed[request]
        engine.step()
        engine.check_integrity()
        for request in [request for request in running if request.finish_reason is not None]:
            number = running.pop(request)
            if request.finish_reason == "abort":
                cancelled += 1
            elif answer(request) != alone[number]:
                sys.exit(f"request {request.number} of kind {number}: {answer(request)}, alone {alone[number]}")
            else:
                compared += 1
    seconds, grown = time.monotonic() - begin, resident() - before
    state, stats = engine.state(), engine.stats()
    print(f"{compared} answers are the same as alone, {cancelled} were cancelled, in {seconds:.0f} s")
    print(f"memory grew by {grown / 2**20:.1f} MiB after the first fifth")
    print(stats)
    finish(
        arguments, [{"compared": compared, "cancelled": cancelled, "seconds": seconds, "grown": grown, **vars(stats)}]
    )
    if state.used_pages or grown > ALLOWED_GROWTH:
        sys.exit(f"{state.used_pages} pages are still held; memory grew by {grown:,} bytes")


if __name__ == "__main__":
    main()
