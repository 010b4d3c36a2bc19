"""What the compiler makes of the linears and of the rounding of their inputs, for GPUs that are not here.

The figures in comments are those of sm_80, sm_89 and sm_90 with Triton 3.6.0; bounds leave a little room.
"""

import math
import re

import pytest

from faquant.kernels.cuda.float_linear import multiply_floats
from faquant.kernels.cuda.linear import multiply, tiling_of
from faquant.kernels.cuda.rounding import chunks_of
from faquant.kernels.cuda.rounding_kernels import prepare_chunks, round_chunks, round_long_rows, round_rows
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS
from oracles.compiled import ARCHITECTURES, Compiled, compiled, name_of

pytestmark = pytest.mark.cuda


def copies(kernel: Compiled) -> list[int]:
    """Bytes of each asynchronous copy to shared memory."""
    return [int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x\w+)", kernel.ptx)]


def has_exact_floats(kernel: Compiled) -> bool:
    """Whether all roundings are to the nearest, and subnormal numbers stay."""
    return ".ftz" not in kernel.ptx and ".approx" not in kernel.ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("size", "block", "kind", "registers"),
    [
        (4096, 0, "norm", 64),  # 63, 63, 63
        (4096, 0, "norm, static", 64),  # 63, 63, 63
        (1536, 512, "norm", 64),  # 34, 40, 36
        (14336, 512, "gated", 128),  # 121, 121, 95; with zero points 123, 123, 97
        (11008, 256, "gated", 128),  # 93, 93, 89
        (28672, 512, "gated, long", 64),  # 64, 64, 64
    ],
)
@pytest.mark.parametrize("steps", [INPUT_STEPS, ASYMMETRIC_INPUT_STEPS])
def test_rounding(architecture: int, steps: float, size: int, block: int, kind: str, registers: int) -> None:
    """Loads of 16 bytes, no fused operations, no spills; the registers of two programs of 8 warps or one of 16 fit."""
    tables = {"scales": "static" not in kind, "norm_weight": "norm" in kind}
    tables |= dict.fromkeys(("input_scale", "input_offset"), "static" in kind)
    types = {"x": "*fp32", "values": "*i8", "zeros": "*i32", "eps": "fp32"}
    types |= {name: "*fp32" for name, used in tables.items() if used}
    chunk, warps = chunks_of(size, block)
    constants = dict.fromkeys([*tables, "norm_bias", "multiplier"]) | {
        "SIZE": size,
        "CHUNK": chunk,
        "GATED": "gated" in kind,
        "BLOCK": block,
        "FACTOR": 1 / math.sqrt(max(block, 1)),
        "STEPS": steps,
    }
    kernel = compiled(round_long_rows if "long" in kind else round_rows, types, constants, architecture, warps=warps)
    rows = 2 if "gated" in kind else 1
    assert kernel.counts["LDG"] >= rows * chunk // (128 * warps)
    assert len(re.findall(r"ld\.global\.v4", kernel.ptx)) >= rows
    # RMSNorm's lanes and static scales are the only loads of single numbers.
    assert "norm" in kind or "ld.global.b32" not in kernel.ptx
    assert "fma.rn" not in kernel.ptx
    assert has_exact_floats(kernel)
    assert kernel.spills == 0
    assert kernel.registers <= registers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_divided_rows(architecture: int) -> None:
    """As test_rounding, for both kernels: registers 37, 37, 32 and 30, 29, 29."""
    sizes = {"SIZE": 14336, "CHUNK": 1024}
    constants = dict.fromkeys(("values", "multiplier", "input_scale", "input_offset")) | sizes
    constants |= {"GATED": True, "BLOCK": 512, "FACTOR": 1 / math.sqrt(512), "STEPS": ASYMMETRIC_INPUT_STEPS}
    types = {"x": "*fp32", "prepared": "*fp32", "peaks": "*i32"}
    first = compiled(prepare_chunks, types, constants, architecture)
    types = {"prepared": "*fp32", "peaks": "*i32", "values": "*i8", "scales": "*fp32", "zeros": "*i32"}
    second = compiled(round_chunks, types, sizes | {"WIDTH": 16, "STEPS": ASYMMETRIC_INPUT_STEPS}, architecture)
    for kernel, loads in ((first, 4), (second, 2)):
        assert len(re.findall(r"ld\.global\.v4", kernel.ptx)) == loads
        assert "fma.rn" not in kernel.ptx
        assert has_exact_floats(kernel)
        assert kernel.spills == 0
        assert kernel.registers <= 44


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("tokens", "n", "k", "registers", "length"),
    [
        (1, 4096, 4096, 56, 92),  # registers 48, 40, 38; instructions of the loop 87, 87, 87 for 64 × 8 × 256 products
        (16, 4096, 4096, 56, 76),  # 48, 40, 40; 67, 67, 72 for 64 × 16 × 128
        (64, 4096, 14336, 112, 118),  # 105, 106, 96; 110, 110, 85 for 64 × 64 × 128
        (64, 28672, 8192, 128, 106),  # 98, 92, 123; 100, 100, 76 for 128 × 64 × 128
        (128, 4096, 4096, 176, 160),  # 170, 170, 128; 152, 152, 87 for 128 × 128 × 128
        (2048, 6144, 4096, 255, 132),  # 240, 238, 251; 126, 126, 74 for 128 × 256 × 64
        (1, 576, 576, 56, 56),  # 38, 37, 32; 49, 46, 49 for 64 × 8 × 64
    ],
)
def test_int8_linear(architecture: int, tokens: int, n: int, k: int, registers: int, length: int) -> None:
    """Matrix instructions on bytes, copies of 16 bytes, no spills, and tiles that fit into shared memory."""
    check_int8_linear(architecture, tokens, n, k, registers, length, wide=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("rows", "n", "k", "registers", "length"),
    [
        (2, 4096, 4096, 56, 92),
        (64, 4096, 14336, 112, 118),  # 96, 96, 90; 110, 110, 85
        (128, 4096, 4096, 176, 160),  # 172, 172, 126; 152, 152, 83
        (4096, 6144, 14336, 208, 160),  # 166, 166, 206; 142, 142, 79
    ],
)
def test_int8_linear_of_16_bits(architecture: int, rows: int, n: int, k: int, registers: int, length: int) -> None:
    """The same loop over twice as many rows; only what follows it differs."""
    check_int8_linear(architecture, rows, n, k, registers, length, wide=True)


def check_int8_linear(
    architecture: int, tokens: int, n: int, k: int, registers: int, length: int, *, wide: bool
) -> None:
    tiling = tiling_of(tokens, n, k, wide)
    types = {"x": "*i8", "weight": "*i8", "tokens": "i32", "partial": "*i32", "arrived": "*i32"}
    types |= dict.fromkeys(("x_scale", "scale", "residual", "out"), "*fp32")
    zeros = dict.fromkeys(("x_zero", "totals"))
    constants = (zeros if wide else {}) | {
        "bias": None,
        "quant_bias": None,
        "OUTPUTS": n,
        "INPUTS": k,
        "TILE_OUTPUTS": tiling.outputs,
        "TILE_TOKENS": tiling.tokens,
        "STEP": tiling.inputs,
        "SPLITS": tiling.splits,
        "WIDE": wide,
    }
    types |= {} if wide else dict.fromkeys(zeros, "*i32")
    kernel = compiled(multiply, types, constants, architecture, warps=tiling.warps, stages=tiling.stages)
    # 64 inputs of 8 tokens are 512 bytes, 4 for each thread.
    expected = {16} if tiling.tokens * tiling.inputs >= 16 * 32 * tiling.warps else {16, 4}
    assert set(copies(kernel)) == expected
    assert kernel.products == {"wgmma.mma_async" if architecture >= 90 and tiling.tokens >= 16 else "mma.sync"}
    assert "fma.rn" not in kernel.ptx
    assert has_exact_floats(kernel)
    assert kernel.spills == 0
    assert kernel.registers <= registers
    assert len(kernel.product_loop()) <= length
    # What a program of sm_89 may have; sm_80 has 163 KB, sm_90 227 KB.
    assert kernel.shared <= 99 * 1024


def test_the_last_program_of_a_tile_sees_the_sums_of_the_others() -> None:
    """All threads store, wait for each other, and one counts with a fence; all wait for its answer before they load."""
    types = {"x": "*i8", "weight": "*i8", "tokens": "i32", "partial": "*i32", "arrived": "*i32"}
    types |= dict.fromkeys(("x_scale", "scale", "out"), "*fp32")
    tiling = tiling_of(1, 4096, 4096)
    constants = dict.fromkeys(("x_zero", "bias", "quant_bias", "totals", "residual")) | {
        "OUTPUTS": 4096,
        "INPUTS": 4096,
        "TILE_OUTPUTS": tiling.outputs,
        "TILE_TOKENS": tiling.tokens,
        "STEP": tiling.inputs,
        "SPLITS": tiling.splits,
        "WIDE": False,
    }
    ptx = compiled(multiply, types, constants, 90, warps=tiling.warps, stages=tiling.stages).ptx
    steps = re.findall(r"st\.global\.v4|bar\.sync|atom\.global\.gpu\.acq_rel\.add|ld\.global\.cg", ptx)
    counted = steps.index("atom.global.gpu.acq_rel.add")
    assert steps[counted - 2 : counted] == ["st.global.v4", "bar.sync"]
    assert steps[counted + 1 : counted + 3] == ["bar.sync", "ld.global.cg"]
    assert steps.count("atom.global.gpu.acq_rel.add") == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("rows", "word", "registers", "length", "sums"),
    [
        (1, "i32", 80, 230, 64),  # registers 63, 75, 63; instructions of the loop 224, 209, 221
        (8, "i32", 128, 690, 512),  # 107, 120, 114; 679, 677, 677
        (16, "i32", 224, 630, 512),  # 205, 219, 207; 620, 623, 619
        (1, "fp32", 64, 125, 32),  # 48, 48, 48; 113, 113, 113
    ],
)
def test_float_linear(architecture: int, rows: int, word: str, registers: int, length: int, sums: int) -> None:
    """Fused multiply-adds, one for each product, and few other instructions; copies of 16 bytes; no spills."""
    types = {"x": "*fp32", "weight": f"*{word}", "out": "*fp32", "tokens": "i32"}
    constants = {
        "bias": None,
        "OUTPUTS": 128256,
        "INPUTS": 4096,
        "ROWS": rows,
        "COLUMNS": 128,
        "PARTS": 2 if word == "i32" else 1,
        "FLOAT16": False,
        "UNROLLED": 4 if rows > 8 else 8,
        "STAGES": 4,
    }
    kernel = compiled(multiply_floats, types, constants, architecture, warps=1)
    loop = max(kernel.loops(), key=len)
    assert kernel.ptx.count("fma.rn.f32") == sums
    assert [name_of(instruction) for instruction in loop].count("FFMA") == sums
    assert has_exact_floats(kernel)
    # Single inputs of a single row are four bytes.
    assert set(copies(kernel)) == ({16, 4} if rows == 1 else {16})
    assert kernel.spills == 0
    assert kernel.registers <= registers
    assert len(loop) <= length
