"""The systems of end_to_end.py: one interface for faquant and the peers; tokens in, tokens out."""

import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peers.client import Peer
from torch import Tensor

from faquant import LLM, SamplingParams
from faquant.bench.speed import Sequences


class System(Protocol):
    """The measured operations."""

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The `count` tokens that continue a prompt."""

    def logits(self, tokens: list[int]) -> Tensor | None:
        """Logits of every token, [tokens, vocab]; None if not supported."""

    def prefill(self, tokens: list[int]) -> object:
        """Process a prompt; returns the seconds, if it measures them more precisely than the caller."""

    def prepare(self, tokens: list[int], sequences: int) -> None:
        """Fill every sequence with the tokens; sequences do not share memory."""

    def decode(self, steps: int) -> object:
        """Generate this many tokens for each sequence; returns seconds as `prefill`."""


class Ours:
    """A directory, run by faquant."""

    def __init__(self, directory: Path) -> None:
        self._llm = LLM(directory, device="cpu")
        self._sequences = Sequences(self._llm.model)
        self.config = self._llm.model.config
        self.cache_bytes = self._sequences.cache_bytes
        self.prefill, self.prepare, self.decode = (
            self._sequences.prefill,
            self._sequences.prepare,
            self._sequences.decode,
        )

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        return list(self._llm.generate([tokens], greedy)[0].token_ids)

    def logits(self, tokens: list[int]) -> Tensor:
        return torch.from_numpy(self._sequences.all_logits(tokens))


class Theirs:
    """A peer's worker with a loaded model."""

    def __init__(self, peer: Peer, model: Path, kv: str, threads: int, huge_pages: bool) -> None:
        self._peer = peer
        self._gives_logits = peer.call("load", model=str(model), kv=kv, threads=threads, huge_pages=huge_pages)

    def greedy(self, tokens: list[int], count: int) -> Any:
        return self._peer.call("greedy", tokens=tokens, count=count)

    def logits(self, tokens: list[int]) -> Tensor | None:
        if not self._gives_logits:
            return None
        with tempfile.TemporaryDirectory() as place:
            file = Path(place, "logits.npy")
            self._peer.call("logits", tokens=tokens, file=str(file))
            return torch.from_numpy(np.load(file))

    def prefill(self, tokens: list[int]) -> Any:
        return self._peer.call("prefill", tokens=tokens)

    def prepare(self, tokens: list[int], sequences: int) -> None:
        self._peer.call("prepare", tokens=tokens, sequences=sequences)

    def decode(self, steps: int) -> Any:
        return self._peer.call("decode", steps=steps)
