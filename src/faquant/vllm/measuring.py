"""Runs prompts through vLLM in this process and returns what its model computed, for `faquant evaluate`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..model.paged import PAGE_SIZE
from . import VERSION


class Prompts:
    """A checkpoint in vLLM, with this plugin. It lives until the process ends, because vLLM cannot be started twice.

    Args:
        length: the longest prompt in tokens.

    Raises:
        UsageError: vLLM is not installed, or of another version.
    """

    def __init__(self, directory: Path, length: int, bytes_per_token: int) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        try:
            from vllm import LLM, SamplingParams, __version__
        except ImportError as error:
            raise UsageError(f"vLLM cannot be imported ({error}). Install it: pip install 'faquant[vllm]'") from error
        if not __version__.startswith(f"{VERSION}."):
            raise UsageError(f"faquant's plugin needs vLLM {VERSION}, but this is vLLM {__version__}.")
        # With the token of the answer, and some pages that vLLM keeps for itself.
        pages = -(-(length + 1) // PAGE_SIZE) + 8
        self._llm = LLM(
            str(directory),
            quantization="faquant",
            max_model_len=length + 1,
            max_num_seqs=1,
            enforce_eager=True,
            enable_prefix_caching=False,
            distributed_executor_backend="uni",
            kv_cache_memory_bytes=pages * PAGE_SIZE * bytes_per_token,
        )
        self._one_token = SamplingParams(max_tokens=1, temperature=0.0)
        self._seen: list[Tensor] = []
        self._model: Any = self._llm.apply_model(lambda model: model)[0]
        self._model.register_forward_hook(lambda _, __, hidden: self._seen.append(hidden.cpu()))

    def hidden(self, prompts: Sequence[Tensor], done: Callable[[int], None] = lambda count: None) -> list[Tensor]:
        """float32 hidden states [tokens, hidden] after the last norm, for int64 ids [tokens] each."""
        found = []
        for count, ids in enumerate(prompts, 1):
            self._seen.clear()
            self._llm.generate({"prompt_token_ids": ids.tolist()}, self._one_token, use_tqdm=False)
            found.append(torch.cat(self._seen))
            done(count)
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits [tokens, vocab] of hidden states, by vLLM's model."""
        logits: Tensor = self._model.compute_logits(hidden)
        return logits
