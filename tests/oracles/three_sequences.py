"""Steps of three sequences through a quantized model: prompts, some of them started, and single tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from faquant.kernels.backend import Pages
from faquant.model.load import Model
from faquant.model.paged import Chunk
from faquant.model.rope import Rope
from oracles.tiny_models import COMMON

STEPS = ((199, 0, 60), (0, 1, 70), (1, 0, 1))
"""Tokens of each sequence in each step."""
PAGE_SIZE = 128


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(COMMON["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed))


class ThreeSequences:
    """Pages of three sequences, allocated alternately, and the length of each."""

    def __init__(self, model: Model, counts: Sequence[tuple[int, int, int]] = STEPS) -> None:
        self.model = model
        self.lengths = [sum(each) for each in zip(*counts, strict=True)]
        self._counts = counts
        self.pages: list[Pages] = [model.make_layer_pages(layer, 6, PAGE_SIZE) for layer in range(3)]
        self.tables = [np.array([3, 0]), np.array([5]), np.array([1, 4])]

    def steps(self) -> Iterator[list[Chunk]]:
        """A prompt and some started answers, and then a token for each."""
        rope, done = Rope(self.model.config), [0, 0, 0]
        for counts in self._counts:
            chunks = []
            for i, count in enumerate(counts):
                if count:
                    some = tokens(self.lengths[i], seed=i)[done[i] : done[i] + count].numpy()
                    chunks.append(Chunk(some, done[i], self.tables[i], rope))
                    done[i] += count
            yield chunks
