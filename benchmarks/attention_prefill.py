"""Prefill attention of a whole prompt: faquant and torch's SDPA, interleaved in one run.

python benchmarks/attention_prefill.py [--lengths 1024 4096] [--threads N] [--json FILE]

GOPS counts two operations for each product within the causal mask. "×" is the peer's time divided by faquant's with
16-bit P. int8 GEMM is torch's (oneDNN) at 2,048³, as the int8 throughput of a library on this machine. "Others" is the
share of the CPU that other processes took; a row with more than 0.05 is repeated, and has a "!" if that did not help.
"""

import argparse
from collections.abc import Callable

import torch
from timing import finish, quiet_seconds, shown_share, start
from torch.nn.functional import scaled_dot_product_attention

from faquant.kernels import reference
from faquant.kernels.pages import Int8Pages, Spans
from faquant.kernels.scheme import P_LEVELS, AttentionScheme

SHAPES = ((9, 3, 64), (32, 8, 128))
PAGE_SIZE, GEMM = 128, 2048
CHECKED = 64


def measure(shape: tuple[int, int, int], length: int) -> dict[str, float]:
    """Times in seconds of faquant, of the peers, and of an int8 matrix product; and the share of the CPU that `others`
    took."""
    heads, kv_heads, dim = shape
    q, k, v = (torch.randn(length, count, dim) for count in (heads, kv_heads, kv_heads))
    numbers, table = torch.arange(length), torch.arange(-(-length // PAGE_SIZE))
    spans = Spans.of([(length, 0, table)])
    calls: dict[str, Callable[[], object]] = {}
    for name, levels in (("P 16", P_LEVELS["int8x2"]), ("P 8", P_LEVELS["uint8"])):
        pages = Int8Pages(AttentionScheme(heads, kv_heads, dim, p_levels=levels), len(table), PAGE_SIZE)
        pages.append(k, v, numbers, numbers)
        start = length - CHECKED
        expected = reference.attend(q[start:], *pages.read_bytes(table, length), pages.scheme, start)
        if not torch.equal(pages.attend(q, spans)[start:], expected):
            raise SystemExit("The kernel's result differs from the oracle's.")
        calls[name] = lambda pages=pages: pages.attend(q, spans)  # type: ignore[misc]
    for name, dtype in (("SDPA bf16", torch.bfloat16), ("SDPA fp32", torch.float32)):
        # SDPA with enable_gqa is far slower on a CPU than with repeated heads.
        repeated = [x.repeat_interleave(heads // x.shape[1], 1).transpose(0, 1)[None].to(dtype) for x in (q, k, v)]
        calls[name] = lambda repeated=repeated: scaled_dot_product_attention(*repeated, is_causal=True)  # type: ignore[misc]
    a = torch.randint(-127, 128, (GEMM, GEMM), dtype=torch.int8)
    calls["int8 GEMM"] = lambda: torch._int_mm(a, a)
    times, others = quiet_seconds(calls, 5)
    return {**times, "others": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    arguments = start(parser)
    print("Hq/Hkv/D    length  GOPS: P 16    P 8   int8 GEMM   SDPA bf16   SDPA fp32  others")
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        for length in arguments.lengths:
            found = measure(shape, length)
            operations = 2 * shape[0] * shape[2] * length * (length + 1)
            rows.append({"shape": shape, "length": length, "operations": operations, **found})
            peers = [found[kind] / found["P 16"] for kind in ("SDPA bf16", "SDPA fp32")]
            print(
                f"{'/'.join(map(str, shape)):10} {length:7}  {operations / found['P 16'] / 1e9:10.0f} "
                f"{operations / found['P 8'] / 1e9:6.0f} {2 * GEMM**3 / found['int8 GEMM'] / 1e9:11.0f}  "
                f"{peers[0]:9.1f}× {peers[1]:9.1f}×  {shown_share(found['others'])}",
                flush=True,
            )
    finish(arguments, rows)


if __name__ == "__main__":
    main()
