"""Decode attention, one new token: ours beside torch's SDPA and what memory gives, interleaved in one run.

python benchmarks/attention_decode.py [--contexts 1024 4096 16384 32768] [--batch 1] [--page-size 128] [--threads N]
                                      [--json FILE]

A fraction is the bytes of the int8 cache / time / the rate at which the same threads read memory in the same run; "×"
is the peer's time over that of ours with 16 bits of P. torch's SDPA gets the query heads of a group as rows, which is
its fastest way. Results are checked against the oracle first.
"""

import argparse
from collections.abc import Callable

import torch
from timing import finish, seconds, start
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from faquant import _C
from faquant.kernels import reference
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import AttentionScheme

SHAPES = ((9, 3, 64), (32, 8, 128), (8, 8, 128), (64, 8, 128))
STREAM_BYTES = 512 << 20


def pages_of(
    scheme: AttentionScheme, k: Tensor, v: Tensor, batch: int, page_size: int, shuffled: bool
) -> tuple[Int8Pages, Tensor]:
    """A cache that is full of sequences, each with the same k and v [context, Hkv, D], and their block tables."""
    context = len(k)
    per_sequence = -(-context // page_size)
    pages = Int8Pages(scheme, batch * per_sequence, page_size)
    order = torch.randperm(pages.num_pages) if shuffled else torch.arange(pages.num_pages)
    tables = order.view(batch, per_sequence)
    positions = torch.arange(context)
    for table in tables:
        pages.append(k, v, table[positions // page_size] * page_size + positions % page_size, positions)
    return pages, tables


def last_tokens(context: int, tables: Tensor) -> Spans:
    """The last token of each sequence."""
    return Spans.of([(1, context - 1, table) for table in tables])


def check(pages: Int8Pages, spans: Spans, q: Tensor) -> None:
    """Refuse to time what is wrong."""
    (_, start, table), *_ = spans.parts
    expected = reference.attend(q[:1], *pages.read_bytes(table, start + 1), pages.scheme, start)
    if not torch.equal(pages.attend(q, spans)[:1], expected):
        raise SystemExit("The kernel does not give the oracle's result.")


def folded(q: Tensor, kv_heads: int, context: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [batch, Hkv, …, D] with a group's query heads as rows."""
    batch, heads, dim = q.shape
    k, v = (torch.randn(batch, kv_heads, context, dim, dtype=dtype) for _ in range(2))
    return q.view(batch, kv_heads, heads // kv_heads, dim).to(dtype), k, v


def measure(shape: tuple[int, int, int], context: int, batch: int, page_size: int, threads: int) -> dict[str, float]:
    """Times in seconds, `bytes` of the cache and `limit` in bytes a second."""
    heads, kv_heads, dim = shape
    q, k, v = torch.randn(batch, heads, dim), *torch.randn(2, context, kv_heads, dim)
    calls: dict[str, Callable[[], object]] = {}
    size = 0
    for name, levels, shuffled in (("P 16", 32767, False), ("P 8", 255, False), ("P 16, shuffled", 32767, True)):
        scheme = AttentionScheme(heads, kv_heads, dim, p_levels=levels)
        pages, tables = pages_of(scheme, k, v, batch, page_size, shuffled)
        spans = last_tokens(context, tables)
        check(pages, spans, q)
        calls[name] = lambda pages=pages, spans=spans: pages.attend(q, spans)  # type: ignore[misc]
        size = batch * context * pages.bytes_per_token
    for name, dtype in (("SDPA bf16", torch.bfloat16), ("SDPA fp32", torch.float32)):
        operands = folded(q, kv_heads, context, dtype)
        calls[name] = lambda operands=operands: scaled_dot_product_attention(*operands)  # type: ignore[misc]
    words = torch.ones(STREAM_BYTES // 8, dtype=torch.int64)
    calls["stream"] = lambda: _C.read_all(words, threads=threads)
    rounds = 6 if context * batch >= 1 << 16 else 18
    times = seconds(calls, rounds)
    return {**times, "bytes": size, "limit": STREAM_BYTES / times.pop("stream")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--page-size", type=int, default=128)
    arguments = start(parser)
    print("Hq/Hkv/D    context  limit GB/s  fraction: P 16   P 8   shuffled pages   SDPA bf16   SDPA fp32")
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        for context in arguments.contexts:
            found = measure(shape, context, arguments.batch, arguments.page_size, arguments.threads)
            rows.append({"shape": shape, "context": context, "batch": arguments.batch, **found})
            name = "/".join(map(str, shape))
            shares = [found["bytes"] / found[kind] / found["limit"] for kind in ("P 16", "P 8", "P 16, shuffled")]
            peers = [found[kind] / found["P 16"] for kind in ("SDPA bf16", "SDPA fp32")]
            print(
                f"{name:10} {context:8}  {found['limit'] / 1e9:10.1f}  {shares[0]:14.2f} {shares[1]:5.2f} "
                f"{shares[2]:16.2f}  {peers[0]:9.1f}× {peers[1]:9.1f}×",
                flush=True,
            )
    finish(arguments, rows)


if __name__ == "__main__":
    main()
