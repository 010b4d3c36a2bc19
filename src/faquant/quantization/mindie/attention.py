"""Float attention with observers on q, k and v."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..tensors import NamedTensor
from .percentile import K_RATIO, Q_RATIO, V_RATIO, HeadObserver


class MindieAttention:
    """Float attention over one prompt with observers on q, k and v; an Attention callable for Decoder."""

    def __init__(self, window: int | None = None) -> None:
        self._window = window
        self._observers = {"q": HeadObserver(Q_RATIO), "k": HeadObserver(K_RATIO), "v": HeadObserver(V_RATIO)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.observe(q, k, v)
        return eager_attention(q, k, v, self._window)

    def observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Add q [tokens, Hq, D] and k [tokens, Hkv, D] after RoPE, and v of one prompt."""
        for observer, states in zip(self._observers.values(), (q, k, v), strict=True):
            observer.update(states)

    def tensors(self, name: str, dtype: torch.dtype | None = None) -> Iterator[NamedTensor]:
        """Scales and (zero) offsets of the attention module `name`; dtype: None for the dtype of the states."""
        scales = {kind: observer.scale().to(dtype) for kind, observer in self._observers.items()}
        for kind, scale in scales.items():
            yield f"{name}.fa_{kind}.scale", "FAQuant", scale
        for kind, scale in scales.items():
            yield f"{name}.fa_{kind}.offset", "FAQuant", torch.zeros_like(scale, dtype=torch.int8)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Causal attention [tokens, Hq, D] of q with k and v [tokens, Hkv, D], with the steps of transformers' `eager`.

    The scores are rounded to the states' dtype; so are the probabilities, which are computed in float32.
    """
    tokens, heads, dim = q.shape
    q = q.transpose(0, 1)
    k, v = (x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0) for x in (k, v))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    unseen = distance < 0 if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(tokens, tokens, dtype=q.dtype).masked_fill(unseen, torch.finfo(q.dtype).min)
    scaling: float = dim**-0.5
    scores = q @ k.transpose(1, 2) * scaling + mask
    probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return (probabilities @ v).transpose(0, 1)
