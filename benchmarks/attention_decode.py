"""Decode attention for one new token: faquant's int8 and bfloat16 caches, torch's SDPA and the memory bound,
interleaved in one run.

python benchmarks/attention_decode.py [--contexts 1024 4096 16384 32768] [--batch 1] [--page-size 128] [--threads N]
                                      [--json FILE]

A fraction is the bytes of the cache / time / the bandwidth at which the same threads read memory in small pages in the
same run; "×" is the time divided by that of int8 with 16-bit P. torch's SDPA gets the query heads of a group as rows,
which is fastest. "Others" is the share of the CPU that other processes took; a row with more than 0.05 is repeated, and
has a "!" if that did not help. Results are first checked against the oracle.
"""

import argparse
from collections.abc import Callable

import torch
from timing import HUGE, SMALL, Streams, finish, quiet_seconds, shown_share, start
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from faquant.kernels import reference
from faquant.kernels.pages import BFloat16Pages, Int8Pages, PackedPages, Spans
from faquant.kernels.scheme import P_LEVELS, AttentionScheme
from faquant.kernels.torch_backend import float_attend

SHAPES = ((9, 3, 64), (32, 8, 128), (8, 8, 128), (64, 8, 128))


def fill(pages: PackedPages, k: Tensor, v: Tensor, batch: int, shuffled: bool = False) -> Tensor:
    """Fill a cache with sequences, each with the same k and v [context, Hkv, D]; returns their block tables."""
    page_size = pages.page_size
    order = torch.randperm(pages.num_pages) if shuffled else torch.arange(pages.num_pages)
    tables = order.view(batch, -1)
    positions = torch.arange(len(k))
    for table in tables:
        pages.append(k, v, table[positions // page_size] * page_size + positions % page_size, positions)
    return tables


def last_tokens(context: int, tables: Tensor) -> Spans:
    """The last token of each sequence."""
    return Spans.of([(1, context - 1, table) for table in tables])


def check(pages: PackedPages, spans: Spans, q: Tensor) -> None:
    """Fail if a result is wrong."""
    (_, start, table), *_ = spans.parts
    out = pages.attend(q, spans)[:1]
    if isinstance(pages, Int8Pages):
        expected = reference.attend(q[:1], *pages.read_bytes(table, start + 1), pages.scheme, start)
        good = torch.equal(out, expected)
    else:
        k, v = (torch.from_numpy(x) for x in pages.read(table, start + 1))
        good = torch.allclose(out, float_attend(q[:1], k, v, start), atol=1e-4)
    if not good:
        raise SystemExit("The kernel's result differs from the oracle's.")


def folded(q: Tensor, kv_heads: int, context: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [batch, Hkv, …, D] with a group's query heads as rows."""
    batch, heads, dim = q.shape
    k, v = (torch.randn(batch, kv_heads, context, dim, dtype=dtype) for _ in range(2))
    return q.view(batch, kv_heads, heads // kv_heads, dim).to(dtype), k, v


def measure(
    shape: tuple[int, int, int], context: int, batch: int, page_size: int, streams: Streams
) -> dict[str, float]:
    """Times in seconds, `bytes` of an int8 and a bfloat16 cache, memory bandwidths in bytes per second, and the share
    of the CPU that `others` took."""
    heads, kv_heads, dim = shape
    q, k, v = torch.randn(batch, heads, dim), *torch.randn(2, context, kv_heads, dim)
    calls: dict[str, Callable[[], object]] = {}
    count = batch * -(-context // page_size)
    wide, narrow = (
        AttentionScheme(heads, kv_heads, dim, p_levels=levels) for levels in (P_LEVELS["int8x2"], P_LEVELS["uint8"])
    )
    caches = {
        "P 16": Int8Pages(wide, count, page_size),
        "P 8": Int8Pages(narrow, count, page_size),
        "P 16, shuffled": Int8Pages(wide, count, page_size),
        "bfloat16": BFloat16Pages(heads, kv_heads, dim, count, page_size),
    }
    for name, pages in caches.items():
        spans = last_tokens(context, fill(pages, k, v, batch, "shuffled" in name))
        check(pages, spans, q)
        calls[name] = lambda pages=pages, spans=spans: pages.attend(q, spans)  # type: ignore[misc]
    for name, dtype in (("SDPA bf16", torch.bfloat16), ("SDPA fp32", torch.float32)):
        operands = folded(q, kv_heads, context, dtype)
        calls[name] = lambda operands=operands: scaled_dot_product_attention(*operands)  # type: ignore[misc]
    rounds = 6 if context * batch >= 1 << 16 else 18
    times, others = quiet_seconds({**calls, **streams.calls}, rounds)
    return {
        **streams.take_rates(times),
        **times,
        "bytes": batch * context * caches["P 16"].bytes_per_token,
        "bfloat16 bytes": batch * context * caches["bfloat16"].bytes_per_token,
        "others": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--page-size", type=int, default=128)
    arguments = start(parser)
    streams = Streams(arguments.threads)
    print(
        "Hq/Hkv/D    context  GB/s: small  huge  fraction: P 16   P 8   shuffled pages   our bf16     SDPA bf16   "
        "SDPA fp32  others"
    )
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        for context in arguments.contexts:
            found = measure(shape, context, arguments.batch, arguments.page_size, streams)
            rows.append({"shape": shape, "context": context, "batch": arguments.batch, **found})
            name = "/".join(map(str, shape))
            shares = [found["bytes"] / found[kind] / found[SMALL] for kind in ("P 16", "P 8", "P 16, shuffled")]
            share = found["bfloat16 bytes"] / found["bfloat16"] / found[SMALL]
            others = [found[kind] / found["P 16"] for kind in ("bfloat16", "SDPA bf16", "SDPA fp32")]
            print(
                f"{name:10} {context:8}  {found[SMALL] / 1e9:11.1f} {found[HUGE] / 1e9:5.1f}  {shares[0]:14.2f} "
                f"{shares[1]:5.2f} {shares[2]:16.2f}  {share:9.2f} {others[0]:4.2f}× {others[1]:9.1f}× "
                f"{others[2]:9.1f}×  {shown_share(found['others'])}",
                flush=True,
            )
    finish(arguments, rows)


if __name__ == "__main__":
    main()
