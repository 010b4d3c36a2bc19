"""One system of vllm_speed.py: reads commands as JSON lines, answers with times. Runs in vLLM's environment."""

import json
import os
import sys
import time
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


Timed = tuple[float, float, list[list[int]]]


def prompts(depth: int, sequences: int) -> list[list[int]]:
    """Distinct ones, of ids that every vocabulary has."""
    return [[100 + (i * 7 + n * 1009) % 3000 for i in range(depth)] for n in range(sequences)]


class InVllm:
    """vLLM in this process, so that an idle system takes no CPU."""

    def __init__(self, directory: str, plugin: bool, tokens: int, sequences: int, cache_bytes: int) -> None:
        from vllm import LLM

        self._llm = LLM(
            directory,
            dtype="bfloat16",
            max_model_len=tokens + 256,
            max_num_seqs=sequences,
            kv_cache_memory_bytes=cache_bytes,
            distributed_executor_backend="uni",
            enforce_eager=plugin,  # others are compiled, as is vLLM's default
            **({"quantization": "faquant"} if plugin else {}),
        )
        self._forward: list[float] = []
        if plugin:
            model: Any = self._llm.apply_model(lambda model: model)[0]
            model.forward, model.compute_logits = self._timed(model.forward), self._timed(model.compute_logits)

    def _timed(self, call: Any) -> Any:
        def timed(*given: Any, **more: Any) -> Any:
            begin = time.perf_counter()
            result = call(*given, **more)
            self._forward.append(time.perf_counter() - begin)
            return result

        return timed

    @property
    def tokens(self) -> int:
        """Tokens of cache."""
        config = self._llm.llm_engine.vllm_config.cache_config
        return int(config.num_gpu_blocks * config.block_size)

    def generate(self, depth: int, sequences: int, count: int) -> Timed:
        """Seconds for `count` tokens of each of the sequences after `depth` tokens, most of which are in the prefix
        cache after the first call; of these, seconds in the model, if it is the plugin's; and the tokens."""
        from vllm import SamplingParams

        given = [{"prompt_token_ids": ids} for ids in prompts(depth, sequences)]
        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._forward.clear()
        begin = time.perf_counter()
        found = self._llm.generate(given, sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        return seconds, sum(self._forward), [list(each.outputs[0].token_ids) for each in found]


class Alone:
    """faquant's engine."""

    def __init__(self, directory: str, tokens: int, sequences: int, cache_bytes: int) -> None:
        from faquant import LLM

        self._llm = LLM(directory, max_model_len=tokens + 256, max_num_seqs=sequences, kv_cache_memory=cache_bytes)

    @property
    def tokens(self) -> int:
        """Tokens of cache."""
        state = self._llm.engine.state()
        return state.num_pages * state.page_size

    def generate(self, depth: int, sequences: int, count: int) -> Timed:
        """As InVllm's."""
        from faquant import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        begin = time.perf_counter()
        found = self._llm.generate(prompts(depth, sequences), sampling)
        return time.perf_counter() - begin, 0.0, [each.token_ids for each in found]


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    system: InVllm | Alone | None = None
    for line in sys.stdin:
        command = json.loads(line)
        if command.pop("command") == "start":
            system = Alone(**command) if command.pop("engine") == "faquant" else InVllm(**command)
            result: Any = system.tokens
        else:
            assert system is not None
            result = system.generate(**command)
        print(json.dumps({"result": result}), file=answers, flush=True)


if __name__ == "__main__":
    main()
