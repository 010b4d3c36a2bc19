"""KL divergence, top-1 agreement and perplexity of a quantized model against its float source.

Windows of tokens without overlap, each run as a prompt through real cache pages; every position counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..kernels.scheme import AttentionScheme
from ..model.load import Model
from ..model.paged import Chunk, run_chunks
from ..model.rope import Rope

WINDOW = 1024
PAGE_SIZE = 128
_ROWS = 128


@dataclass(frozen=True)
class Divergence:
    """KL(float ‖ quantized) of the next-token distribution in nats, over `tokens` positions.

    `top1` is the share of positions whose likeliest token is the same; perplexities are of the text's own next tokens.
    """

    tokens: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    perplexity_float: float
    perplexity: float

    def to_json(self) -> dict[str, float]:
        """As a flat object."""
        return asdict(self)


def variants(model: Model, source: Model) -> dict[str, Model]:
    """The quantized `model` split into what its attention and its linears each cost against the float `source`."""
    parts: dict[str, Model] = {}
    quantized_attention = any(scheme is not None for scheme in model.schemes)
    quantized_linears = model.description is not None and model.description.model_quant_type != "FLOAT"
    if quantized_attention:
        parts["attention"] = Model(source.config, source.decoder, _unfolded(model), model.max_position)
    if quantized_linears:
        parts["linears"] = replace(model, schemes=[None] * model.config.num_layers)
    if quantized_attention and quantized_linears:
        parts["both"] = model
    return parts


def _unfolded(model: Model) -> list[AttentionScheme | None]:
    """The schemes for float weights, which do not hold V's rotation."""
    block = model.metadata.v_block if model.metadata else 0
    return [None if scheme is None else replace(scheme, v_rotation_block=block) for scheme in model.schemes]


def compare(
    source: Model,
    candidates: Mapping[str, Model],
    tokens: Sequence[int],
    window: int = WINDOW,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Divergence]:
    """Run `tokens` in windows through the float `source` and every candidate.

    Raises:
        UsageError: there are fewer than two tokens, or the window is beyond a model's context.
    """
    if len(tokens) < 2:
        raise UsageError("The evaluation text has fewer than two tokens; there is nothing to measure.")
    limit = min(model.max_position for model in (source, *candidates.values()))
    if window < 2:
        raise UsageError("A window of one token has no next token to measure; the model's context is too short.")
    if window > limit:
        raise UsageError(f"The evaluation window of {window} tokens is beyond the context of {limit} tokens.")
    ids = torch.tensor(tokens, dtype=torch.int64)
    starts = [start for start in range(0, len(ids), window) if len(ids) - start >= 2]
    totals = {name: _Totals() for name in candidates}
    for done, start in enumerate(starts):
        progress(done, len(starts))
        part = ids[start : start + window]
        expected = _hidden(source, part)
        found = {name: _hidden(model, part) for name, model in candidates.items()}
        for row in range(0, len(part), _ROWS):
            rows, following = slice(row, row + _ROWS), part[row + 1 : row + 1 + _ROWS]
            p = _log_probabilities(source, expected[rows])
            for name, model in candidates.items():
                totals[name].add(p, _log_probabilities(model, found[name][rows]), following)
    progress(len(starts), len(starts))
    return {name: total.result() for name, total in totals.items()}


def window_logits(model: Model, ids: Tensor, position: int = 0) -> Tensor:
    """float32 logits [tokens, vocab] of one window whose first token stands at RoPE position `position`."""
    return model.decoder.logits(_hidden(model, ids, position))


def _hidden(model: Model, ids: Tensor, position: int = 0) -> Tensor:
    count = -(-len(ids) // PAGE_SIZE)
    chunk = Chunk(
        ids, 0, torch.arange(count), Rope(model.config, min(position + len(ids), model.config.max_position)), position
    )
    with torch.inference_mode():
        return run_chunks(model.decoder, model.make_pages(count, PAGE_SIZE), [chunk])


@torch.inference_mode()
def _log_probabilities(model: Model, hidden: Tensor) -> Tensor:
    return model.decoder.logits(hidden).log_softmax(-1)


class _Totals:
    """Sums over the positions of one candidate."""

    def __init__(self) -> None:
        self.kl: list[Tensor] = []
        self.agree = 0
        self.loss_float = 0.0
        self.loss = 0.0
        self.predicted = 0

    def add(self, p: Tensor, q: Tensor, following: Tensor) -> None:
        """Count log-probabilities p (float model) and q [rows, vocab], and the tokens that really followed, of which
        there is one less at a window's end."""
        self.kl.append((p.exp() * (p - q)).sum(-1, dtype=torch.float64))
        self.agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        picked = (torch.arange(len(following)), following)
        self.loss_float -= float(p[picked].sum(dtype=torch.float64))
        self.loss -= float(q[picked].sum(dtype=torch.float64))
        self.predicted += len(following)

    def result(self) -> Divergence:
        kl = torch.cat(self.kl)
        if not kl.isfinite().all():
            raise CheckpointError(
                "A model's logits are not finite, so there is nothing to compare. Its weights or scales are damaged."
            )
        return Divergence(
            tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_p99=float(kl.quantile(0.99)),
            kl_max=float(kl.max()),
            top1=self.agree / len(kl),
            perplexity_float=_perplexity(self.loss_float / self.predicted),
            perplexity=_perplexity(self.loss / self.predicted),
        )


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))
