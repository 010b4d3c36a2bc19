"""Every instruction set's kernels against NumPy in int64."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from faquant.errors import UsageError
from faquant.kernels import isa as cpu

LENGTHS = [0, 1, 63, 64, 65, 127, 128, 129, 1000, cpu.MAX_DOT_LENGTH]
KERNELS = [(cpu.dot_u8s8, np.uint8), (cpu.dot_s8s8, np.int8)]
POISON = 0x7F

isas = pytest.mark.parametrize("isa", cpu.available_isas())
kernels = pytest.mark.parametrize(("dot", "dtype"), KERNELS, ids=["u8s8", "s8s8"])


def exact(a: np.ndarray, b: np.ndarray) -> int:
    return int(a.astype(np.int64) @ b.astype(np.int64))


def saturating(a: np.ndarray, b: np.ndarray) -> int:
    """Like vpmaddubsw: the sum of each pair of neighboring products saturates to int16."""
    products = a.astype(np.int64) * b.astype(np.int64)
    products = np.append(products, np.zeros(len(products) % 2, np.int64))
    return int(products.reshape(-1, 2).sum(axis=1).clip(-32768, 32767).sum())


def within_poison(values: np.ndarray) -> np.ndarray:
    """`values` at an odd address, with neighbors that would change a sum that reads too far."""
    buffer = np.full(len(values) + 130, POISON, values.dtype)
    buffer[65 : 65 + len(values)] = values
    return buffer[65 : 65 + len(values)]


def extremes(dtype: Any) -> list[int]:
    info = np.iinfo(dtype)
    return [int(info.min), int(info.max)]


@isas
@kernels
@pytest.mark.parametrize("length", LENGTHS)
def test_extreme_values(isa: str, dot: Any, dtype: Any, length: int) -> None:
    for x in extremes(dtype):
        for y in extremes(np.int8):
            a, b = np.full(length, x, dtype), np.full(length, y, np.int8)
            assert dot(within_poison(a), within_poison(b), isa=isa) == x * y * length


@isas
@kernels
@pytest.mark.parametrize("length", LENGTHS)
def test_random_values(isa: str, dot: Any, dtype: Any, length: int) -> None:
    rng = np.random.default_rng(length)
    a = within_poison(rng.integers(*extremes(dtype), length, dtype, endpoint=True))
    b = within_poison(rng.integers(*extremes(np.int8), length, np.int8, endpoint=True))
    assert dot(a, b, isa=isa) == exact(a, b)


@isas
@kernels
@given(data=st.data(), length=st.integers(0, 200))
def test_any_values(isa: str, dot: Any, dtype: Any, data: st.DataObject, length: int) -> None:
    values = st.binary(min_size=length, max_size=length)
    a = within_poison(np.frombuffer(data.draw(values), dtype))
    b = within_poison(np.frombuffer(data.draw(values), np.int8))
    assert dot(a, b, isa=isa) == exact(a, b)


@kernels
@pytest.mark.parametrize("length", [length for length in LENGTHS if length > 1])
def test_the_values_tell_saturation(dot: Any, dtype: Any, length: int) -> None:
    x = max(extremes(dtype), key=abs)
    a, b = np.full(length, x, dtype), np.full(length, -128, np.int8)
    assert saturating(a, b) != exact(a, b)


def test_self_test_passes() -> None:
    assert cpu.self_test() == dict.fromkeys(cpu.available_isas(), True)


def test_takes_torch_tensors_and_read_only_arrays() -> None:
    a, b = torch.full((100,), 255, dtype=torch.uint8), torch.full((100,), -128, dtype=torch.int8)
    assert cpu.dot_u8s8(a, b) == 255 * -128 * 100
    frozen = b.numpy().copy()
    frozen.flags.writeable = False
    assert cpu.dot_s8s8(frozen, frozen) == 128 * 128 * 100


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(4, np.int8), np.zeros(4, np.int8), "a must be a contiguous one-dimensional array of uint8"),
        (np.zeros(4, np.uint8), np.zeros(4, np.float32), "b must be a contiguous one-dimensional array of int8"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.int8), "one-dimensional"),
        (np.zeros(8, np.uint8)[::2], np.zeros(4, np.int8), "contiguous"),
        (np.zeros(4, np.uint8)[::-1], np.zeros(4, np.int8), "contiguous"),
        (np.zeros(4, np.uint8), np.zeros(3, np.int8), "not 4 and 3"),
        (np.zeros(65537, np.uint8), np.zeros(65537, np.int8), "up to 65536"),
    ],
)
def test_wrong_operands_are_refused(a: Any, b: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu.dot_u8s8(a, b)


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(TypeError):
        cpu.dot_s8s8([1, 2], np.zeros(2, np.int8))  # type: ignore[arg-type]


def test_features_and_names() -> None:
    features = cpu.cpu_features()
    assert {
        *("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("amx_int8", "amx_permitted", "asimddp", "i8mm"),
    } <= set(features)
    assert cpu.cpu_name()
    isas = cpu.available_isas()
    assert isas[-1] == "portable"
    assert ("avx2" in isas) == (features["avx2"] and features["f16c"])
    assert not ("amx" in isas and not (features["amx_int8"] and features["amx_permitted"] and features["avx512_vnni"]))
    assert not (features["amx_permitted"] and not features["amx_int8"])
    assert not ("avx512vnni" in isas and not features["avx512_vnni"])
    assert not ("avxvnni-evex" in isas and "avx512vnni" not in isas)
    assert not ("avxvnni" in isas and not features["avx_vnni"])
    assert not ("neondot" in isas and not features["asimddp"])
    assert not ("neoni8mm" in isas and not features["i8mm"])


def test_features_agree_with_the_kernel() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        # "Features" on AArch64. Other processors have no such line, so they must not have any feature.
        flags = next((set(line.split()) for line in file if line.startswith(("flags", "Features"))), set())
    features = cpu.cpu_features()
    assert all(features[name] for name in features if name in flags)
    # Older kernels do not know the later names.
    assert all(name in flags for name in ["avx2", "avx512f", "avx512_vnni", "asimddp", "i8mm"] if features[name])


def in_a_new_process(isa: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FAQUANT_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@isas
def test_the_environment_forces_one(isa: str) -> None:
    result = in_a_new_process(isa, "from faquant.kernels import isa; print(isa.selected_isa())")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{isa}\n", "")


def test_an_empty_environment_variable_forces_none() -> None:
    result = in_a_new_process("", "from faquant.kernels import isa; print(isa.selected_isa())")
    assert result.stdout.strip() == cpu.available_isas()[0]


def test_an_unknown_name_is_refused_at_first_use() -> None:
    code = """
import faquant
from faquant.errors import UsageError
from faquant.kernels import isa
for _ in range(2):
    try:
        isa.selected_isa()
    except UsageError as error:
        print(error)
"""
    result = in_a_new_process("sse9", code)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    for part in ["FAQUANT_ISA", "'sse9'", *cpu.available_isas()]:
        assert part in lines[0]


def test_an_unknown_name_is_refused_in_a_call() -> None:
    with pytest.raises(UsageError, match=r"'sse9'.*portable"):
        cpu.dot_s8s8(np.zeros(1, np.int8), np.zeros(1, np.int8), isa="sse9")


# No CPU has those of x86-64 and of AArch64.
@pytest.mark.parametrize(
    "isa", sorted({"amx", "avx2", "avxvnni", "avx512vnni", "neondot", "neoni8mm"} - set(cpu.available_isas()))
)
def test_a_lacking_isa_is_refused(isa: str) -> None:
    with pytest.raises(UsageError, match=isa):
        cpu.dot_s8s8(np.zeros(1, np.int8), np.zeros(1, np.int8), isa=isa)
