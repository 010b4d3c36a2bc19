"""Ranks of tensor parallelism as threads of one process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from faquant.checkpoint.model_config import ModelConfig
from faquant.formats import open_checkpoint
from faquant.kernels.arrays import Floats, Integers
from faquant.kernels.cpu import CpuBackend
from faquant.kernels.pages import Int8Pages
from faquant.kernels.scheme import AttentionScheme
from faquant.model.decoder import Decoder, build_decoder
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.ranks import Heads
from faquant.model.rope import Rope
from faquant.vllm.shards import Gather, Shard, with_heads
from oracles.pages import poison

BACKEND = CpuBackend()


class Made(Protocol):
    """A model whose tables are the same for every rank."""

    config: ModelConfig

    @property
    def schemes(self) -> list[AttentionScheme | None]:
        """Of its layers."""

    def decoder(self, shard: Shard) -> Decoder:
        """One rank's part."""


class Exchange:
    """all_gather among threads."""

    def __init__(self, ranks: int) -> None:
        self._parts: list[Any] = [None] * ranks
        self._barrier = threading.Barrier(ranks, timeout=60)

    def of(self, rank: int) -> Gather:
        def gather(x: Floats) -> Floats:
            self._parts[rank] = x
            self._barrier.wait()
            whole = np.concatenate(self._parts, axis=1)
            self._barrier.wait()
            return whole

        return gather


class Stored:
    """Tables of a checkpoint."""

    def __init__(self, directory: Path) -> None:
        self._opened = open_checkpoint(directory)
        self.config, self.schemes = self._opened.config, self._opened.schemes

    def decoder(self, shard: Shard) -> Decoder:
        def linear(name: str) -> Any:
            return shard.linear(name, self._opened.linear(name))

        return build_decoder(self.config, BACKEND, self._opened.tensor, linear, self._opened.checked.__contains__)


def results(made: Made, ranks: int, sums: bool = False, ids: Integers | None = None) -> list[tuple[Floats, list[Any]]]:
    """For each rank, the logits of a prompt of up to 254 tokens and of two after it, and each layer's stored bytes."""
    config, exchange = made.config, Exchange(ranks)
    if ids is None:
        ids = np.random.default_rng(1).integers(0, config.vocab_size, 132)
    count = len(ids)

    def run(rank: int) -> tuple[Floats, list[Any]]:
        heads = Heads.of(config, rank, ranks)
        gather = exchange.of(rank)
        reduce = (lambda x: gather(x[None].reshape(1, -1)).reshape(ranks, *x.shape).sum(0)) if sums else None
        decoder = made.decoder(Shard(config, BACKEND, heads, rank, ranks, gather, reduce))
        pages = [pages_of(config, scheme, heads) for scheme in made.schemes]
        for each in pages:
            poison(each)
        paged, rope, table = PagedDecoder(decoder, pages, BACKEND), Rope(config), np.array([2, 0])
        chunks = Chunk(ids[:-2], 0, table, rope), Chunk(ids[-2:], count - 2, table, rope)
        found = [paged.run([chunk]) for chunk in chunks]
        logits = decoder.logits(np.concatenate(found))
        stored = [each.read_bytes(table, count) for each in pages if isinstance(each, Int8Pages)]
        return logits, stored

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def pages_of(config: ModelConfig, scheme: AttentionScheme | None, heads: Heads) -> Any:
    if scheme is None:
        return BACKEND.float_pages(len(heads.q), len(heads.kv), config.head_dim, 3, 128)
    return BACKEND.int8_pages(with_heads(scheme, heads), 3, 128)
