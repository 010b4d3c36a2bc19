"""What end_to_end.py measures, ours and the peers behind one interface; tokens in, tokens out."""

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peers.client import Peer
from torch import Tensor

from faquant import LLM, SamplingParams
from faquant.engine.sampling import Sampler
from faquant.kernels.threads import torch_on_one
from faquant.model.paged import Chunk, PagedDecoder
from faquant.model.rope import Rope

PAGE_SIZE, PREFILL_CHUNK = 128, 1024


class System(Protocol):
    """What is measured of each."""

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        """The `count` tokens that continue a prompt."""

    def logits(self, tokens: list[int]) -> Tensor | None:
        """Those of every token, [tokens, vocab]; None where it does not give them."""

    def prefill(self, tokens: list[int]) -> object:
        """Read a prompt; seconds, where it knows better than its caller."""

    def prepare(self, tokens: list[int], sequences: int) -> None:
        """Let every sequence hold the tokens, in memory of its own."""

    def decode(self, steps: int) -> object:
        """Generate so many tokens for each sequence; seconds likewise."""


class Ours:
    """A directory of ours."""

    def __init__(self, directory: Path) -> None:
        self._llm = LLM(directory)
        self._model = self._llm.model
        self.config = self._model.config
        self._rope = Rope(self._model.config, self._model.max_position)

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        return list(self._llm.generate([tokens], greedy)[0].token_ids)

    def logits(self, tokens: list[int]) -> Tensor:
        self._make_pages(len(tokens), 1)
        return self._logits([tokens], 0)

    def prefill(self, tokens: list[int]) -> None:
        self._make_pages(len(tokens), 1)
        self._fill(tokens)

    def prepare(self, tokens: list[int], sequences: int) -> None:
        self._make_pages(len(tokens) + PAGE_SIZE, sequences)
        last = self._fill(tokens)
        for table in self._tables[1:]:
            for source, target in zip(self._tables[0].tolist(), table.tolist(), strict=True):
                for pages in self._pages:
                    pages.copy_page(source, target)
        self._depth, self._next = len(tokens), [int(last.argmax())] * sequences
        self._samplers = [Sampler(SamplingParams(temperature=0), tokens) for _ in range(sequences)]

    def decode(self, steps: int) -> None:
        tokens = self._next
        for step in range(steps):
            logits = self._logits([[token] for token in tokens], self._depth + step)
            tokens = [sampler.sample(row) for sampler, row in zip(self._samplers, logits, strict=True)]

    @property
    def cache_bytes(self) -> int:
        """Of one token."""
        return sum(pages.bytes_per_token for pages in self._model.make_pages(1, PAGE_SIZE))

    def _make_pages(self, length: int, sequences: int) -> None:
        each = -(-length // PAGE_SIZE)
        self._pages = self._model.make_pages(sequences * each, PAGE_SIZE)
        self._decoder = PagedDecoder(self._model.decoder, self._pages)
        self._tables = torch.arange(sequences * each).view(sequences, each)

    def _fill(self, tokens: list[int]) -> Tensor:
        """Logits of the last token."""
        for begin in range(0, len(tokens), PREFILL_CHUNK):
            last = self._logits([tokens[begin : begin + PREFILL_CHUNK]], begin, last_only=True)
        return last

    @torch.inference_mode()
    def _logits(self, rows: Sequence[list[int]], start: int, last_only: bool = False) -> Tensor:
        chunks = [
            Chunk(torch.tensor(row), start, table, self._rope) for row, table in zip(rows, self._tables, strict=False)
        ]
        with self._threads():
            hidden = self._decoder.run(chunks)
            return self._model.decoder.logits(hidden[-1:] if last_only else hidden)

    def _threads(self) -> AbstractContextManager[None]:
        return torch_on_one() if self._model.is_int8() else nullcontext()


class Theirs:
    """A peer's worker with the model loaded."""

    def __init__(self, peer: Peer, model: Path, kv: str, threads: int) -> None:
        self._peer = peer
        self._gives_logits = peer.call("load", model=str(model), kv=kv, threads=threads)

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
