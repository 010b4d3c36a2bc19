"""The kernels between the products and attention, as compiled: no spills, few registers, loads of 16 bytes."""

from collections import Counter
from typing import Any

import pytest

from faquant.kernels.cuda import append, append_bfloat16, attention_inputs, queries
from faquant.kernels.cuda.rows import TokenBlocks, width_of
from oracles.compiled import ARCHITECTURES, Compiled, compiled

pytestmark = pytest.mark.cuda

MAPPED = ("k_center", "k_equalizer", "rotation_sign")
DYNAMIC = {"k_scales": "*fp16", "v_scales": "*fp16"}
TYPES = {
    **dict.fromkeys(["q", "qkv", "keys", "cos", "sin", "scales", "biases"], "*fp32"),
    "slots": "*i64",
    "positions": "*i32",
    "k": "*i8",
    "v": "*i8",
    "beyond": "*i64",
    **dict.fromkeys(["tokens", "token_stride", "key_stride", "value_stride", "maps"], "i32"),
    "eps": "fp32",
}


def build(kernel: Any, architecture: int, tokens: int, dim: int, more: dict[str, str], **constants: Any) -> Compiled:
    """A kernel for 32 heads of q and 8 of K and V; nine maps if K is centered. `more`: types of further arguments."""
    blocks, block = TokenBlocks.of(tokens, dim), dim & -dim
    maps = 9 if "k_center" in more else 1
    values = "*fp32" if kernel is append._append else "*i8"
    types = {**TYPES, "values": values, **more}
    every = {
        **dict.fromkeys(kernel.arg_names),
        "ROWS": blocks.rows,
        "WIDTH": width_of(dim),
        "DIM": dim,
        "HEADS": 32,
        "KV_HEADS": 8,
        "KEYS": 128,
        "MAPS": maps,
        "MAP_BLOCK": 1024,
        "SHIFTED": maps > 1,
        "Q_BY_CHANNEL": False,
        "K_BY_CHANNEL": False,
        "K_BLOCK": block,
        "V_BLOCK": block,
        "BLOCK": block,
        "SCORE_UNIT": 0.125,
        **dict.fromkeys(["UNIT", "K_UNIT", "V_UNIT"], block**-0.5),
        **constants,
    }
    return compiled(
        kernel,
        {name: kind for name, kind in types.items() if name in kernel.arg_names},
        every,
        architecture,
        warps=blocks.warps,
        multiples_of_16=("token_stride", "key_stride", "value_stride"),
    )


def memory(kernel: Compiled, name: str) -> Counter[str]:
    """Loads (LDG) or stores (STG) of the GPU's memory by their width."""
    return Counter(each.split()[0] for each in kernel.instructions if each.startswith(name))


def tables(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("tokens", "registers"), [(1, 64), (64, 104)])
def test_all_inputs_of_attention(architecture: int, tokens: int, registers: int) -> None:
    """With every step: norms, maps, rotations. One launch for each layer. 50 to 58 registers with one token a program,
    78 to 94 with four."""
    more = {**tables(*MAPPED, "q_norm", "k_norm"), **DYNAMIC}
    kernel = build(attention_inputs._attention_inputs, architecture, tokens, 128, more)
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
    kernel = build(append._append, 90, tokens, dim, {**tables(*MAPPED), **DYNAMIC})
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
        build(append._append, architecture, 64, 128, static),
        build(queries._map_queries, architecture, 64, 128, static, Q_BY_CHANNEL=True, K_BY_CHANNEL=True),
    ):
        assert kernel.spills == 0
        assert kernel.registers <= 104
        assert "fma.rn" not in kernel.ptx
        assert memory(kernel, "LDG")["LDG.E.128"] >= 8
        assert memory(kernel, "LDG")["LDG.E"] <= 8


@pytest.mark.parametrize("tokens", [1, 64])
def test_bfloat16(tokens: int) -> None:
    more = {"k": "*bf16", "v": "*bf16"}
    kernel = build(append_bfloat16._append_bfloat16, 90, tokens, 128, {**more, "values": "*fp32"})
    assert kernel.spills == 0
    assert kernel.registers <= 64
    assert memory(kernel, "LDG")["LDG.E.128"] >= 2
