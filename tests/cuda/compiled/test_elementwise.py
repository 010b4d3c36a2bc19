"""The elementwise kernels, as compiled: no spills, loads and stores of 16 bytes, and no waiting between squares."""

import pytest

from faquant.kernels.cuda import elementwise
from oracles.compiled import ARCHITECTURES, Compiled, compiled, name_of

pytestmark = pytest.mark.cuda

STRIDES = ("x_stride", "out_stride")


def is_wide(kernel: Compiled, narrow_loads: int = 0) -> bool:
    """Whether all loads but this many are of 16 bytes, and all stores."""
    accesses = [each.split()[0] for each in kernel.instructions if each.startswith(("LDG", "STG"))]
    narrow = [each for each in accesses if not each.endswith(".128")]
    return len(accesses) > len(narrow) and narrow == ["LDG.E"] * narrow_loads


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("biased", [False, True])
def test_rms_norm(architecture: int, biased: bool) -> None:
    """Squares in 16 lanes are 256 additions, each of which waits for the one before, and for nothing else: the loop
    loads the 32 numbers of the next round before it adds those of this one, in 104 instructions."""
    types = {**dict.fromkeys(["x", "weight", "out"], "*fp32"), "eps": "fp32", **dict.fromkeys(STRIDES, "i32")}
    if biased:
        types["bias"] = "*fp32"
    kernel = compiled(
        elementwise._rms_norm,
        types,
        {"SIZE": 4096, "WIDTH": 4096, "bias": None},
        architecture,
        multiples_of_16=STRIDES,
    )
    assert kernel.spills == 0
    assert kernel.registers <= 160
    assert "fma.rn" not in kernel.ptx
    assert is_wide(kernel, narrow_loads=64)
    loop = next(loop for loop in kernel.loops() if any(name_of(each) == "LDG" for each in loop))
    names = [name_of(each) for each in loop]
    assert (names.count("LDG"), names.count("FADD")) == (32, 32)
    assert len(names) <= 112
    # In place, no warp may store before all have loaded.
    names = [name_of(each) for each in kernel.instructions]
    assert names.count("BAR") == 1
    assert max(at for at, name in enumerate(names) if name == "LDG") < names.index("BAR") < names.index("STG")


@pytest.mark.parametrize("size", [576, 128])
def test_rms_norm_of_other_sizes(size: int) -> None:
    types = {**dict.fromkeys(["x", "weight", "out"], "*fp32"), "eps": "fp32", **dict.fromkeys(STRIDES, "i32")}
    width = 1 << (size - 1).bit_length()
    kernel = compiled(
        elementwise._rms_norm,
        types,
        {"SIZE": size, "WIDTH": width, "bias": None},
        90,
        warps=1 if width <= 256 else 4,
        multiples_of_16=STRIDES,
    )
    assert kernel.spills == 0
    assert is_wide(kernel, narrow_loads=size // 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("gelu", [False, True])
def test_gated(architecture: int, gelu: bool) -> None:
    strides = ["gate_stride", "up_stride", "size"]
    types = {**dict.fromkeys(["gate", "up", "out"], "*fp32"), **dict.fromkeys(strides, "i32")}
    kernel = compiled(
        elementwise._gated,
        types,
        {"BLOCK": elementwise._GATED_BLOCK, "GELU": gelu},
        architecture,
        multiples_of_16=strides,
    )
    assert kernel.spills == 0
    assert kernel.registers <= 48
    assert "fma.rn" not in kernel.ptx
    assert is_wide(kernel)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dim", [80, 128])
def test_rope(architecture: int, dim: int) -> None:
    types = {**dict.fromkeys(["x", "cos", "sin"], "*fp32"), "token_stride": "i32", "heads": "i32"}
    constants = {"DIM": dim, "HEADS": 16, "WIDTH": 64}
    kernel = compiled(elementwise._rope, types, constants, architecture, multiples_of_16=["token_stride"])
    assert kernel.spills == 0
    assert kernel.registers <= 48
    assert "fma.rn" not in kernel.ptx
    assert is_wide(kernel)
