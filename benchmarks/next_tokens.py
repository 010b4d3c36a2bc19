"""How far other engines' next-token distributions are from a float model's, on windows of a text."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peers.client import add_python
from torch import Tensor

from faquant.evaluation.divergence import WINDOW, standard_error, window_logits
from faquant.model.load import load
from faquant.text.tokenizer import Tokenizer


class Difference(NamedTuple):
    """Mean KL(float ‖ other) in nats, its standard error over the windows (None: there is one), and the share of
    positions with the same likeliest token."""

    kl: float
    error: float | None
    top1: float


def parser_of(description: str | None, max_tokens: int) -> argparse.ArgumentParser:
    """Options of a benchmark that compares a checkpoint in an engine with the float model that it was made from."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-tokens", type=int, default=max_tokens)
    add_python(parser)
    return parser


class FloatModel:
    """The float model's distributions on the first `max_tokens` tokens of a text, in windows of WINDOW."""

    def __init__(self, model: Path, text: Path, max_tokens: int) -> None:
        self.tokenizer, self.text = Tokenizer.from_directory(model), text.read_text(encoding="utf-8")
        ids = self.tokenizer.encode(self.text, add_special_tokens=False)[:max_tokens]
        self.tokens = len(ids)
        self.windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
        self._exact = [_log_probabilities(logits) for logits in self.logits_of(model)]

    def logits_of(self, directory: Path) -> list[Tensor]:
        """faquant's logits of a directory, [tokens, vocab] for each window."""
        model = load(directory)
        return [torch.as_tensor(window_logits(model, torch.tensor(window))) for window in self.windows]

    def compare(self, logits: Callable[[Sequence[int]], Tensor]) -> Difference:
        """The difference of an engine that returns logits [tokens, vocab] for each window."""
        kl, same = [], []
        for window, p in zip(self.windows, self._exact, strict=True):
            q = _log_probabilities(logits(window))
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append((p.argmax(-1) == q.argmax(-1)).double())
        return Difference(float(torch.cat(kl).mean()), standard_error(kl), float(torch.cat(same).mean()))


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)
