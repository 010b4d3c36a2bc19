"""The kernels between the products and attention, as compiled: no spills, few registers, loads of 16 bytes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from faquant.kernels.cuda.append_bfloat16 import _append_bfloat16
from faquant.kernels.cuda.attention_inputs import prepare
from faquant.kernels.cuda.rows import TokenBlocks, width_of
from oracles.compiled import ARCHITECTURES, Compiled, compiled

pytestmark = pytest.mark.cuda

MAPPED = ("k_center", "k_equalizer", "rotation_sign")
DYNAMIC = {"k_scales": "*fp16", "v_scales": "*fp16"}
TYPES = {
    **dict.fromkeys(["q", "keys", "values", "cos", "sin", "scales", "biases"], "*fp32"),
    "slots": "*i64",
    "positions": "*i32",
    **dict.fromkeys(["mapped", "k", "v"], "*i8"),
    "beyond": "*i64",
    **dict.fromkeys(["tokens", "q_stride", "key_stride", "value_stride", "maps"], "i32"),
    "eps": "fp32",
}
ROPE = ("cos", "sin", "eps")
OF_QUERIES = ("q", "mapped", "scales", "biases", "q_stride", "q_norm", "q_scale", "maps")
OF_CACHE = (
    "keys",
    "values",
    "slots",
    "k",
    "v",
    "k_scales",
    "v_scales",
    "k_offset",
    "v_scale",
    "v_offset",
    "key_stride",
)


def build(
    architecture: int, tokens: int, dim: int, more: dict[str, str], absent: Sequence[str] = (), **constants: Any
) -> Compiled:
    """`prepare` for 32 heads of q and 8 of K and V; nine maps if K is centered.

    more: types of further arguments. absent: arguments that are not there.
    """
    blocks, block = TokenBlocks.of(tokens, dim), dim & -dim
    maps = 9 if "k_center" in more else 1
    types = {name: kind for name, kind in {**TYPES, **more}.items() if name not in absent}
    numbers = {name: 0 for name in absent if TYPES.get(name) == "i32"} | ({"eps": 0.0} if "eps" in absent else {})
    every = {
        **dict.fromkeys(prepare.arg_names),
        **numbers,
        "ROWS": blocks.rows,
        "WIDTH": width_of(dim),
        "DIM": dim,
        "HEADS": 32,
        "KV_HEADS": 8,
        "KEYS": 128,
        "TILES_IN_PAGE": 1,
        "PAGE_STRIDE": 8 * 128 * (2 * dim + 4),
        "MAPS": maps,
        "MAP_BLOCK": 1024,
        "SHIFTED": maps > 1,
        "Q_BY_CHANNEL": False,
        "K_BY_CHANNEL": False,
        **dict.fromkeys(["K_BLOCK", "V_BLOCK"], block),
        **dict.fromkeys(["K_UNIT", "V_UNIT"], block**-0.5),
        "SCORE_UNIT": 0.125,
        "STORED": "k" not in absent,
        **constants,
    }
    strides = ("q_stride", "key_stride", "value_stride")
    return compiled(prepare, types, every, architecture, warps=blocks.warps, multiples_of_16=strides)


def memory(kernel: Compiled, name: str) -> Counter[str]:
    """Loads (LDG) or stores (STG) of the GPU's memory by their width."""
    return Counter(each.split()[0] for each in kernel.instructions if each.startswith(name))


def tables(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("tokens", "registers"), [(1, 64), (64, 104)])
def test_all_inputs_of_attention(architecture: int, tokens: int, registers: int) -> None:
    """With every step: norms, maps, rotations. One launch for each layer. 52 registers with one token a program,
    90 to 96 with four."""
    more = {**tables(*MAPPED, "q_norm", "k_norm"), **DYNAMIC}
    kernel = build(architecture, tokens, 128, more)
    assert kernel.spills == 0
    assert kernel.registers <= registers
    assert "fma.rn" not in kernel.ptx
    loads = memory(kernel, "LDG")
    # Single numbers are positions, and squares in 16 lanes: two norms of eight rounds.
    assert loads["LDG.E.128"] >= 16
    assert loads["LDG.E"] <= 18
    assert set(loads) <= {"LDG.E.128", "LDG.E.64", "LDG.E"}
    # Rows lie in one warp, so the transform needs no other warp.
    assert kernel.counts["BAR"] <= 16


@pytest.mark.parametrize("dim", [64, 80, 256])
@pytest.mark.parametrize("tokens", [1, 64])
def test_append(dim: int, tokens: int) -> None:
    """30 registers with one token a program, 72 with four. A head of 64 channels is two numbers for each thread."""
    kernel = build(90, tokens, dim, {**tables(*MAPPED), **DYNAMIC}, ROPE + OF_QUERIES)
    assert kernel.spills == 0
    assert kernel.registers <= 96
    assert "fma.rn" not in kernel.ptx
    loads = memory(kernel, "LDG")
    wide = "LDG.E.64" if (dim, tokens) == (64, 1) else "LDG.E.128"
    assert loads[wide] >= 5
    assert loads["LDG.E"] <= 8


@pytest.mark.parametrize("architecture", [80, 90])
def test_static_scales(architecture: int) -> None:
    """The tables are loaded as widely as the rows, and the counter is touched only if there is something to count."""
    static = tables("q_scale", "k_scale", "k_offset", "v_scale", "v_offset", *MAPPED)
    for kernel in (
        build(architecture, 64, 128, static, ROPE + OF_QUERIES),
        build(architecture, 64, 128, static, ROPE + OF_CACHE, Q_BY_CHANNEL=True, K_BY_CHANNEL=True),
    ):
        assert kernel.spills == 0
        assert kernel.registers <= 104
        assert "fma.rn" not in kernel.ptx
        assert memory(kernel, "LDG")["LDG.E.128"] >= 8
        assert memory(kernel, "LDG")["LDG.E"] <= 8


@pytest.mark.parametrize("tokens", [1, 64])
def test_bfloat16(tokens: int) -> None:
    blocks = TokenBlocks.of(tokens, 128)
    types = dict.fromkeys(["keys", "values"], "*fp32") | {"slots": "*i64", "k": "*bf16", "v": "*bf16"}
    types |= dict.fromkeys(["tokens", "key_stride", "value_stride"], "i32")
    constants = {"ROWS": blocks.rows, "WIDTH": 128, "DIM": 128, "KV_HEADS": 8, "KEYS": 128}
    constants |= {"TILES_IN_PAGE": 1, "PAGE_STRIDE": 8 * 128 * 2 * 128}
    strides = ("key_stride", "value_stride")
    kernel = compiled(_append_bfloat16, types, constants, 90, warps=blocks.warps, multiples_of_16=strides)
    assert kernel.spills == 0
    assert kernel.registers <= 64
    assert memory(kernel, "LDG")["LDG.E.128"] >= 2
