"""The engine's configuration: the single source of LLM's options and of the command-line flags."""

from dataclasses import dataclass
from typing import get_args

from ..checkpoint.model_config import KvCacheDtype
from ..errors import UsageError
from ..kernels.device import Device


@dataclass(frozen=True)
class EngineConfig:
    """Limits and switches, named as in vLLM. Validated on construction.

    Attributes:
        device: `cpu`, `cuda` for the GPU, or `auto`: the GPU if there is one, the extra `cuda` is
            installed, and its kernels pass their self-test.
        max_model_len: maximum tokens of a prompt and its answer; None: the model's context, or less if the cache holds
            less.
        max_num_seqs: maximum sequences per step; further ones wait.
        max_num_batched_tokens: maximum tokens per step; longer prompts are read in chunks.
        kv_cache_memory: bytes of the KV cache; None: enough for max_num_seqs sequences of max_model_len tokens, but at
            most 4 GiB and half of the available memory; on a GPU at most the free memory without a tenth of all. On
            the CPU, the memory is allocated when it is first written.
        kv_cache_dtype: `auto` is the checkpoint's type, int8 if it is quantized; `bfloat16` is for comparison.
        enable_prefix_caching: keep the pages of finished sequences and reuse them for prompts with the same prefix.
        speculative_tokens: maximum draft tokens per step, looked up in the prompt and the answer; 0: no speculation.
            The answer does not change.

    Raises:
        UsageError: a value is outside its range.
    """

    device: Device = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    kv_cache_memory: int | None = None
    kv_cache_dtype: KvCacheDtype = "auto"
    enable_prefix_caching: bool = True
    speculative_tokens: int = 0

    def __post_init__(self) -> None:
        for name, low, high, optional in (
            ("max_model_len", 1, 2**31 - 1, True),
            ("max_num_seqs", 1, 4096, False),
            ("max_num_batched_tokens", 1, 2**20, False),
            ("kv_cache_memory", 1, 2**63 - 1, True),
            ("speculative_tokens", 0, 64, False),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            if not whole and not (optional and value is None):
                raise UsageError(f"{name} must be a whole number from {low} to {high}, not {value!r:.80}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every sequence advances in every step."
            )
        for name, choices in (("device", get_args(Device)), ("kv_cache_dtype", get_args(KvCacheDtype))):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r:.80}.")
        if not isinstance(self.enable_prefix_caching, bool):
            raise UsageError(f"enable_prefix_caching must be true or false, not {self.enable_prefix_caching!r:.80}.")

    def length(self, max_position: int, note: str | None = None) -> int:
        """The maximum length of a request, in tokens.

        Args:
            max_position: the model's context.
            note: why the context is not longer; it is quoted in the error.

        Raises:
            UsageError: max_model_len exceeds the model's context.
        """
        if self.max_model_len is not None and self.max_model_len > max_position:
            raise UsageError(
                f"max_model_len ({self.max_model_len}) exceeds the model's context of {max_position} tokens"
                f"{f' ({note})' if note else ''}."
            )
        return self.max_model_len or max_position
