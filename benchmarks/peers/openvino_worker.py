"""OpenVINO GenAI's continuous batching, step by step; prompts and answers are token ids."""

import time

import numpy as np
import openvino
import openvino_genai as genai
from worker import seconds, serve

MAX_BATCHED_TOKENS = 2048
ENDLESS = 1 << 20
CACHE_GIB = 4


class Worker:
    """A pipeline and its running requests. Decoded tokens are kept, so sequences grow slightly: by at most an eighth,
    as `prepare` begins again then."""

    def __init__(self) -> None:
        self._pipeline: genai.ContinuousBatchingPipeline | None = None
        self._requests: list[genai.GenerationHandle] = []
        self._number = 0
        self._tokens: list[int] = []
        self._grown = 0

    def version(self) -> str:
        return f"openvino-genai {genai.__version__}"

    def load(self, model: str, kv: str, threads: int, huge_pages: bool = False, serving: bool = False) -> bool:
        """Start the pipeline; returns whether it supports logits. `huge_pages`: nothing to do, as the weights are in
        memory from malloc. `serving`: with prefix cache and chunked prefill, as in faquant."""
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = MAX_BATCHED_TOKENS
        if serving:
            scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = True, True
            scheduler.cache_size = CACHE_GIB
        properties = {"KV_CACHE_PRECISION": kv, "INFERENCE_NUM_THREADS": threads}
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        return False

    def prepare(self, tokens: list[int], sequences: int) -> None:
        """Fill every sequence with the tokens; sequences do not share memory."""
        if tokens != self._tokens or sequences < len(self._requests) or self._grown > len(tokens) // 8:
            self._drop()
            self._tokens = tokens
        if sequences > len(self._requests):
            self._add(tokens, sequences - len(self._requests))
            self._grown += self._read_first()

    def decode(self, steps: int) -> float:
        """Seconds for decoding this many tokens in each sequence."""
        taken = seconds(lambda: [self._pipeline.step() for _ in range(steps)])
        self._grown += steps
        if any(len(self._read(request)) != steps for request in self._requests):
            raise ValueError("a step did not produce a token for each sequence")
        return taken

    def prefill(self, tokens: list[int]) -> float:
        self._drop()
        return seconds(lambda: (self._add(tokens, 1), self._read_first()))

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        self._drop()
        self._add(tokens, 1)
        found: list[int] = []
        while len(found) < count:
            self._pipeline.step()
            found += self._read(self._requests[0])
        return found

    def serve(self, requests: list[tuple[float, list[int], int]]) -> dict[str, object]:
        """Serve requests (at, prompt, tokens); return the total seconds, and the times of each request's first and last
        token."""
        self._drop()
        begin = time.monotonic()
        waiting = list(reversed(list(enumerate(requests))))
        times: list[list[float]] = [[0.0, 0.0, 0] for _ in requests]
        running: dict[int, genai.GenerationHandle] = {}
        while waiting or running:
            now = time.monotonic() - begin
            while waiting and waiting[-1][1][0] <= now:
                number, (_, prompt, tokens) = waiting.pop()
                running[number] = self._ask(prompt, tokens)
            if not running:
                time.sleep(max(0.0, waiting[-1][1][0] - now))
                continue
            self._pipeline.step()
            now = time.monotonic() - begin
            for number, request in list(running.items()):
                at, _, tokens = requests[number]
                if count := len(self._read(request)):
                    times[number][0] = times[number][0] or now - at
                    times[number][2] += count
                if times[number][2] == tokens:
                    times[number][1] = now - at
                    del running[number]
        return {"seconds": time.monotonic() - begin, "times": times}

    def _add(self, tokens: list[int], sequences: int) -> None:
        self._requests += [self._ask(tokens, ENDLESS) for _ in range(sequences)]

    def _ask(self, prompt: list[int], tokens: int) -> "genai.GenerationHandle":
        wanted = genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = tokens, True, False
        self._number += 1
        return self._pipeline.add_request(self._number, openvino.Tensor(np.array([prompt], np.int64)), wanted)

    def _read_first(self) -> int:
        """Step until all prompts are processed; discard tokens generated meanwhile. Returns the number of steps."""
        waiting, steps = list(self._requests), 0
        while waiting:
            self._pipeline.step()
            steps += 1
            waiting = [request for request in waiting if not request.can_read()]
        for request in self._requests:
            self._read(request)
        return steps

    def _read(self, request: "genai.GenerationHandle") -> list[int]:
        """Tokens that have not been fetched yet."""
        found: list[int] = []
        while request.can_read():
            (output,) = request.read().values()
            found += output.generated_ids
        return found

    def _drop(self) -> None:
        for request in self._requests:
            request.cancel()
        while self._requests and self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._requests.clear()
        self._tokens, self._grown = [], 0


if __name__ == "__main__":
    worker = Worker()
    serve(
        {name: getattr(worker, name) for name in ("version", "load", "prepare", "decode", "prefill", "greedy", "serve")}
    )
