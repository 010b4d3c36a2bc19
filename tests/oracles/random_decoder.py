"""Tiny random decoders with int8 linears, of several kinds and with several caches."""

from functools import cache

import numpy as np
import torch

from faquant.checkpoint.model_config import ModelConfig, parse_config
from faquant.kernels.arrays import Floats, Integers
from faquant.kernels.backend import Linear, Pages
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.scheme import AttentionScheme
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, DynamicTable
from faquant.model.decoder import Decoder, build_decoder
from faquant.model.paged import Chunk, PagedDecoder
from oracles.pages import poison

VOCABULARY = 50
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
# Row sizes that are not multiples of 16 floats put the elements of each row at other places in a vector.
ODD = {**LLAMA, "hidden_size": 100, "intermediate_size": 200, "num_attention_heads": 5, "num_key_value_heads": 1}
MODELS = {
    "llama": LLAMA,
    "odd": {
        **ODD,
        "max_position_embeddings": 256,
        "rope_scaling": {"rope_type": "dynamic", "factor": 16.0},
    },
    "odd-longrope": {
        **ODD,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 10,
            "long_factor": [float(factor) for factor in range(1, 11)],
            "original_max_position_embeddings": 256,
        },
    },
    "odd-qwen2-window": {
        **ODD,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 70,
        "max_window_layers": 1,
    },
    "odd-smollm3": {**ODD, "model_type": "smollm3", "no_rope_layers": [0, 1], "attention_bias": True},
    "odd-gemma3": {
        **ODD,
        "model_type": "gemma3_text",
        "head_dim": 20,
        "query_pre_attn_scalar": 10,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 70,
    },
    "odd-olmo3": {**ODD, "model_type": "olmo3", "sliding_window": 70, "num_hidden_layers": 2, "rope_theta": 5e5},
    "odd-qwen3": {
        **ODD,
        "model_type": "qwen3",
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 12,
    },
}
SCHEMES = ("default", "static", "bfloat16")
BACKEND = CpuBackend()


class Random:
    """Random parts of a model."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Floats:
        return torch.randn(shape, generator=self.generator).numpy()

    def tensor(self, name: str) -> Floats:
        if name.endswith("embed_tokens.weight"):
            return self.normal(self.config.vocab_size, self.config.hidden_size)
        norm = name.split(".")[-2]
        size = self.config.qk_norm_size(norm) if norm in ("q_norm", "k_norm") else self.config.hidden_size
        return 1 + 0.3 * self.normal(size)

    def linear(self, name: str) -> Linear:
        n, k = self.config.linear_shape(name)
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=self.generator).numpy()
        scale = (np.abs(self.normal(n)) + np.float32(0.5)) / np.float32(73 * k**0.5)
        block = {192: 64, 200: 8}[k] if name.endswith("down_proj") else 0
        bias = self.normal(n) if self.config.has_bias(name) else None
        return BACKEND.linear(DynamicTable(weight, scale, bias, block, input_steps=ASYMMETRIC_INPUT_STEPS))

    def scheme(self, name: str) -> AttentionScheme | None:
        """None: the cache is of bfloat16."""
        if name == "bfloat16":
            return None
        c = self.config
        heads, dim = c.num_kv_heads, c.head_dim
        block = dim & -dim
        common = {
            "num_heads": c.num_heads,
            "num_kv_heads": heads,
            "head_dim": dim,
            "k_center": self.normal(heads, dim),
            "k_equalizer": np.abs(self.normal(heads, dim)) + np.float32(0.5),
            "rotation_block": block,
        }
        if name == "default":
            return AttentionScheme(**common)
        return AttentionScheme(
            **common,
            k_scale=(np.abs(self.normal(heads, dim)) + 1) / 50,
            v_scale=(np.abs(self.normal(heads, dim)) + 1) / 50,
            v_offset=np.rint(self.normal(heads, dim)),
            quantized_sum=True,
        )


Parts = tuple[Decoder, list[AttentionScheme | None]]


@cache
def parts(model: str, scheme: str = "default") -> Parts:
    config = parse_config(MODELS[model])
    random = Random(config)
    decoder = build_decoder(config, BACKEND, random.tensor, random.linear, lambda name: False)
    return decoder, [random.scheme(scheme) for _ in range(config.num_layers)]


def tokens(count: int, seed: int = 0) -> Integers:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).numpy()


class Cache:
    """Pages that are allocated in random order, poisoned where nothing was written."""

    def __init__(self, made: Parts, page_size: int, capacity: int) -> None:
        self.decoder, schemes = made
        count = -(-capacity // page_size) + 8
        self.page_size = page_size
        self.pages = [self._layer(scheme, count) for scheme in schemes]
        for pages in self.pages:
            poison(pages)
        self.free = torch.randperm(count, generator=torch.Generator().manual_seed(5)).tolist()

    def _layer(self, scheme: AttentionScheme | None, count: int) -> Pages:
        if scheme is None:
            c = self.decoder.config
            return BACKEND.float_pages(c.num_heads, c.num_kv_heads, c.head_dim, count, self.page_size, "bfloat16")
        return BACKEND.int8_pages(scheme, count, self.page_size)

    def table(self, length: int) -> Integers:
        return np.array([self.free.pop() for _ in range(-(-length // self.page_size))])

    def logits(self, chunks: list[Chunk]) -> list[Floats]:
        logits = self.decoder.logits(PagedDecoder(self.decoder, self.pages, BACKEND).run(chunks))
        return np.split(logits, np.cumsum([len(chunk.tokens) for chunk in chunks])[:-1])
