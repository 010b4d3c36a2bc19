"""OpenVINO GenAI's continuous batching, step by step; takes and gives token ids."""

import numpy as np
import openvino
import openvino_genai as genai
from worker import seconds, serve

MAX_BATCHED_TOKENS = 2048
ENDLESS = 1 << 20


class Worker:
    """A pipeline and the requests that run in it. What was decoded stays: sequences get a little longer."""

    def __init__(self) -> None:
        self._pipeline: genai.ContinuousBatchingPipeline | None = None
        self._requests: list[genai.GenerationHandle] = []
        self._number = 0

    def version(self) -> str:
        return f"openvino-genai {genai.__version__}"

    def load(self, model: str, kv: str, threads: int) -> bool:
        """Whether it gives logits."""
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = MAX_BATCHED_TOKENS
        properties = {"KV_CACHE_PRECISION": kv, "INFERENCE_NUM_THREADS": threads}
        self._pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        return False

    def prepare(self, tokens: list[int], sequences: int) -> None:
        """Let every sequence hold the tokens; sequences do not share memory."""
        self._drop()
        self._add(tokens, sequences)
        self._read_first()

    def decode(self, steps: int) -> float:
        """Seconds of so many tokens for each sequence."""
        taken = seconds(lambda: [self._pipeline.step() for _ in range(steps)])
        if any(len(self._read(request)) != steps for request in self._requests):
            raise ValueError("a step did not give each sequence a token")
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

    def _add(self, tokens: list[int], sequences: int) -> None:
        wanted = genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = ENDLESS, True, False
        for _ in range(sequences):
            self._number += 1
            prompt = openvino.Tensor(np.array([tokens], np.int64))
            self._requests.append(self._pipeline.add_request(self._number, prompt, wanted))

    def _read_first(self) -> None:
        """Step until every prompt is read, and forget what was generated meanwhile."""
        waiting = list(self._requests)
        while waiting:
            self._pipeline.step()
            waiting = [request for request in waiting if not request.can_read()]
        for request in self._requests:
            self._read(request)

    def _read(self, request: "genai.GenerationHandle") -> list[int]:
        """Tokens that were not read yet."""
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


if __name__ == "__main__":
    worker = Worker()
    serve({name: getattr(worker, name) for name in ("version", "load", "prepare", "decode", "prefill", "greedy")})
