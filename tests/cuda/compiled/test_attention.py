"""The attention kernels, compiled for GPUs that are not here: instructions, registers and spills.

src/faquant/kernels/cuda/README.md has the figures. They are for head_dim 128, dynamic scales, P in 32,639 levels and
maps by position, if nothing else is said.
"""

import re
from typing import Any

import pytest
import triton.language as tl

from faquant.kernels.cuda.bfloat16 import attend_split
from faquant.kernels.cuda.decode import attend_part
from faquant.kernels.cuda.merging import merge_splits, merge_tiles
from faquant.kernels.cuda.prefill import attend_chunk
from oracles.compiled import ARCHITECTURES, Compiled, compiled, name_of

pytestmark = pytest.mark.cuda

TYPES = {
    "queries": "*i8",
    "k": "*i8",
    "v": "*i8",
    **dict.fromkeys(("k_scale", "v_scale"), "*fp16"),
    **dict.fromkeys(("positions", "sequences", "block_tables"), "*i32"),
    **dict.fromkeys(("scale", "bias", "v_static", "v_offset", "result"), "*fp32"),
    **{f"{part}_{what}": "*fp32" for part in ("part", "tile", "split") for what in ("max", "sum", "out")},
    **dict.fromkeys(("first", "count", "start", "tokens", "last_map", "window", "width", "parts", "splits"), "i32"),
}
DYNAMIC = ("v_static", "v_offset", "window")
STATIC = ("k_scale", "v_scale", "bias")


def build(
    kernel: Any, architecture: int, absent: tuple[str, ...], warps: int, layers: int = 1, **more: Any
) -> Compiled:
    """With 32 query heads over key/value heads of 128 channels, unless `more` says otherwise. Pages lie as far apart as
    if those of so many layers were side by side."""
    constants = {
        "HEADS": 32,
        "KV_HEADS": 8,
        "D": 128,
        "PADDED": 128,
        "COLUMNS": 8,
        "LEVELS": 32639,
        "QUANTIZED_SUM": False,
        "TILES_IN_PAGE": 1,
        "MAP_TILES": 0 if "bias" in absent else 8,
        "TILES": 16,
        "STAGES": 5,
        "ROTATION": 0,
        "FACTOR": 1.0,
        "UNROLLED": 8,
    }
    types = {name: kind for name, kind in TYPES.items() if name in kernel.arg_names and name not in absent}
    constants |= dict.fromkeys(absent) | more
    of_token = 2 * constants["D"] + sum(2 for name in ("k_scale", "v_scale") if name in types)
    constants["PAGE_STRIDE"] = layers * constants["KV_HEADS"] * of_token * 128 * constants["TILES_IN_PAGE"]
    if kernel is attend_split:
        types |= dict.fromkeys(("queries", "k", "v"), "*bf16")
    return compiled(kernel, types, constants, architecture, warps=warps)


def check(kernel: Compiled) -> None:
    """Products of bytes, loads of 16 bytes, and each rounding on its own."""
    assert kernel.products
    assert re.search(r"LDG(STS)?\.E[\w.]*\.128", kernel.sass)
    check_rounding(kernel)


def check_rounding(kernel: Compiled) -> None:
    assert not re.search(r"fma\.rn|\.approx|\.ftz|div\.full", kernel.ptx)


def spills(instructions: list[str]) -> int:
    return sum(name_of(instruction) in ("LDL", "STL") for instruction in instructions)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kv_heads", "layers"), [(4, 1), (8, 1), (8, 32)])
def test_decode(architecture: int, kv_heads: int, layers: int) -> None:
    kernel = build(attend_part, architecture, DYNAMIC, 4, layers, KV_HEADS=kv_heads)
    check(kernel)
    assert kernel.spills == 0
    assert kernel.registers <= 168
    assert len(kernel.product_loop()) <= (920 if architecture == 80 else 900)
    # A byte of P has one product with V; q has one with K.
    assert sum(name_of(instruction) == "IMMA" for instruction in kernel.product_loop()) == 24
    # Two buffers of K and V fit into the smallest GPU's shared memory.
    assert 4 * 128 * 128 <= kernel.shared <= 99 * 1024


@pytest.mark.parametrize(
    ("absent", "more"),
    [
        (DYNAMIC, {"TILES": 1, "STAGES": 1}),
        (DYNAMIC, {"LEVELS": 32767, "KV_HEADS": 4}),
        (DYNAMIC[:2], {"D": 80, "KV_HEADS": 32}),
        (STATIC, {"LEVELS": 127, "QUANTIZED_SUM": True, "TILES_IN_PAGE": 3}),
    ],
    ids=["one tile", "32,767 levels", "window and 80 channels", "static scales"],
)
def test_decode_of_other_kinds(absent: tuple[str, ...], more: dict[str, Any]) -> None:
    kernel = build(attend_part, 89, absent, 4, **more)
    check(kernel)
    assert kernel.spills == 0
    assert kernel.registers <= 168


@pytest.mark.parametrize("more", [{"KV_HEADS": 2, "COLUMNS": 16}, {"D": 256, "PADDED": 256, "STAGES": 3}], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decode_of_large_groups_and_heads(architecture: int, more: dict[str, int]) -> None:
    """They need more registers than others, but all fit, and the shared memory of each architecture suffices."""
    kernel = build(attend_part, architecture, DYNAMIC, 4, **more)
    check(kernel)
    assert kernel.spills == 0
    assert kernel.shared <= {80: 163, 89: 99, 90: 227}[architecture] * 1024


@pytest.mark.parametrize(
    ("architecture", "columns", "warps", "per_score", "spilled"),
    [(80, 16, 2, 73, 20), (89, 16, 2, 73, 20), (90, 32, 4, 80, 95)],
)
def test_prefill(architecture: int, columns: int, warps: int, per_score: int, spilled: int) -> None:
    """Spills are where splits are merged, not in the loop over tiles."""
    kernel = build(attend_chunk, architecture, DYNAMIC, warps, COLUMNS=columns, STAGES=3)
    check(kernel)
    assert kernel.products == {"wgmma.mma_async" if architecture == 90 else "mma.sync"}
    loop = kernel.product_loop()
    assert spills(loop) == 0
    assert kernel.spills <= spilled
    assert len(loop) * warps * 32 / (128 * columns) <= per_score


def test_prefill_of_another_kind() -> None:
    kernel = build(
        attend_chunk,
        80,
        STATIC,
        4,
        D=80,
        COLUMNS=16,
        LEVELS=32767,
        QUANTIZED_SUM=True,
        ROTATION=16,
        FACTOR=0.25,
        STAGES=3,
    )
    check(kernel)
    assert spills(kernel.product_loop()) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging(architecture: int) -> None:
    for kernel, more in ((merge_tiles, {}), (merge_splits, {"ROTATION": 128, "FACTOR": 128**-0.5})):
        merge = build(kernel, architecture, ("window",), 1, **more)
        assert merge.spills == 0
        assert merge.registers <= 128
        check_rounding(merge)
        assert "ld.global.v4" in merge.ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16(architecture: int) -> None:
    """What int8 is compared with is not slowed down by its registers or memory."""
    kernel = build(attend_split, architecture, ("window",), 4, STAGES=3, UNIT=0.125, OPERAND=tl.bfloat16)
    assert kernel.counts["HMMA"] == 32
    assert kernel.spills == 0
    assert kernel.registers <= 168
    assert kernel.shared <= 99 * 1024
