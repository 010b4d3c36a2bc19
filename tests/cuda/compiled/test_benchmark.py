"""The kernels that benchmarks/gpu.py compares with compile for GPUs, do not spill, and use the matrix units: otherwise
the comparison would flatter ours. In bfloat16, heads of 128 channels:

    converting, tile of        32 keys   64 keys   128 keys
    registers, sm_80           119       168       128
    registers, sm_90           125       159       157
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from oracles.compiled import ARCHITECTURES, Compiled, compiled

pytestmark = pytest.mark.cuda

INTEGERS = ("width", "splits", "split_keys", "context")
PARTS = ("part_top", "part_sum", "part_out")
TYPES = {
    **dict.fromkeys(("k", "v"), "*i8"),
    **dict.fromkeys(("k_scale", "v_scale"), "*fp16"),
    **dict.fromkeys(("block_tables", "lengths"), "*i32"),
    **dict.fromkeys((*PARTS, "cos", "sin"), "*fp32"),
    **dict.fromkeys(("q", "x", "weight", "out", "qkv", "gate_up", "result"), "*bf16"),
    **dict.fromkeys(("unit", "eps"), "fp32"),
    **dict.fromkeys(INTEGERS, "i32"),
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    return {name: import_module(f"gpu_parts.{name}") for name in ("converting", "bfloat16")}


def compile_for(architecture: int, kernel: Any, warps: int = 4, **constants: Any) -> Compiled:
    types = {name: TYPES[name] for name in kernel.arg_names if name not in constants}
    if kernel.__name__ == "_rope_append":
        types |= {"k": "*bf16", "v": "*bf16"}
    return compiled(kernel, types, constants, architecture, warps=warps, multiples_of_16=("split_keys", "context"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_converting(architecture: int, parts: dict[str, ModuleType]) -> None:
    converting = parts["converting"]
    for tile, warps, stages in converting.TILINGS.values():
        made = compile_for(
            architecture,
            converting.attend_split,
            warps,
            HEADS=32,
            KV_HEADS=8,
            D=128,
            ROWS=16,
            TILE=tile,
            PAGE_SIZE=converting.PAGE,
            PAGE_STRIDE=8 * 260 * converting.PAGE,
            SCALE_STRIDE=4 * 260 * converting.PAGE,
            STAGES=stages,
        )
        assert made.counts["HMMA"] > 0
        assert made.spills == 0
        assert made.registers <= 168
        assert "cp.async.cg.shared.global" in made.ptx, "16 bytes of K and V at a time"
    merging = compile_for(architecture, converting.merge_splits, HEADS=32, D=128, TOGETHER=converting.MERGED_TOGETHER)
    assert merging.spills == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_between_products(architecture: int, parts: dict[str, ModuleType]) -> None:
    bfloat16 = parts["bfloat16"]
    made = [
        compile_for(architecture, bfloat16._rms_norm, 8, SIZE=4096, WIDTH=4096),
        compile_for(architecture, bfloat16._rope_append, 1, HEADS=32, KV_HEADS=8, D=128),
        compile_for(architecture, bfloat16._silu_times, SIZE=14336, BLOCK=1024),
    ]
    assert all(kernel.spills == 0 and kernel.registers <= 64 for kernel in made)
