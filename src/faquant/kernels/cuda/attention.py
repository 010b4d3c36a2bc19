"""int8 attention of a batch on a GPU, with the bits of reference.attend for each of its sequences."""

from itertools import accumulate, groupby

import torch
from torch import Tensor

from ..scheme import TILE
from .cache import DeviceSpans, Int8Cache, MappedQueries, SchemeTables
from .decode import Workspace, decode, most_splits
from .prefill import prefill

FEW_TOKENS = 16
"""Up to this many tokens of a sequence are attended to one by one, by more programs that read the same keys."""


def attend(
    queries: MappedQueries,
    cache: Int8Cache,
    tables: SchemeTables,
    spans: DeviceSpans,
    window: int | None,
    out: Tensor | None = None,
) -> Tensor:
    """The attention of each token over the keys of its sequence up to its own.

    Args:
        window: each query sees this many keys, including its own; None: all.
        out: memory for the result, contiguous.

    Returns:
        float32 [tokens, Hq, D], with V's rotation undone.
    """
    _, tokens, heads, dim = queries.values.shape
    if out is None:
        out = torch.empty(tokens, heads, dim, device=queries.values.device)
    ends = list(accumulate(spans.counts))
    parts = zip(spans.counts, ends, spans.starts, strict=True)
    for few, neighbors in groupby(parts, key=lambda part: part[0] <= FEW_TOKENS):
        some = list(neighbors)
        if few:
            rows = range(some[0][1] - some[0][0], some[-1][1])
            longest = max(start + count for count, _, start in some)
            by_tile = False if longest <= TILE else None
            workspace = Workspace.empty(len(rows), most_splits(longest, window), tables, out.device, by_tile)
            decode(queries, cache, tables, spans, window, workspace, out, rows)
            continue
        for count, end, start in some:
            prefill(queries, cache, tables, spans, window, out, range(end - count, end), start)
    return out
