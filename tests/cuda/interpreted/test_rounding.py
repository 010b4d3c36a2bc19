"""Rounding the inputs of int8 linears has the bits of the reference and of the C++ kernels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from faquant.kernels import modules, quantizers
from faquant.kernels.cuda import rounding
from faquant.kernels.cuda.rounding import DeviceNorm, InputRounding, RoundedInputs, round_gated, round_inputs
from faquant.kernels.tables import ASYMMETRIC_INPUT_STEPS, INPUT_STEPS, WIDE_INPUT_STEPS

pytestmark = pytest.mark.cuda


def rounded_by_reference(x: Tensor, how: InputRounding) -> RoundedInputs:
    """The steps of reference.dynamic_linear and static_linear before their products."""
    if how.multiplier is not None:
        x = x * how.multiplier
    if how.scale is not None:
        return RoundedInputs(((x / how.scale).round() + how.offset).clamp(-128, 127).to(torch.int8), None)
    if how.hadamard_block:
        x = quantizers.hadamard(x, how.hadamard_block)
    if how.steps == ASYMMETRIC_INPUT_STEPS:
        values, scale, zero = quantizers.quantize_rows_asymmetric(x)
        return RoundedInputs(values, scale, zero.to(torch.int32))
    values, scale = quantizers.quantize_rows(x, how.steps)
    if how.steps == WIDE_INPUT_STEPS:
        # Python's own division into bytes.
        low = [[(value + 128) % 256 - 128 for value in row] for row in values.tolist()]
        high = [[(a - b) // 256 for a, b in zip(*rows, strict=True)] for rows in zip(values.tolist(), low, strict=True)]
        values = torch.tensor([high, low], dtype=torch.int8).transpose(0, 1).flatten(0, 1)
    return RoundedInputs(values, scale)


def check(found: RoundedInputs, expected: RoundedInputs) -> None:
    assert torch.equal(found.values, expected.values)
    assert (found.zero is None) == (expected.zero is None)
    assert found.zero is None or expected.zero is None or torch.equal(found.zero, expected.zero)
    if expected.scale is None:
        assert found.scale is None
    else:
        assert found.scale is not None
        assert torch.equal(found.scale.view(torch.int32), expected.scale.view(torch.int32))


def rows_of(tokens: int, size: int) -> Tensor:
    """Rows of different sizes, with outliers, the last input among them, and halves of steps."""
    x = torch.randn(tokens, size) * torch.logspace(-3, 3, tokens)[:, None]
    x[:, size // 3] *= 50
    x[-1, -1] *= 10000
    x[0] = torch.arange(size) % 255 / 2 - 63.5
    x[0, 0] = 127
    x[1] += x[1].abs().mean()
    return x


def static(size: int) -> InputRounding:
    return InputRounding(scale=torch.tensor([0.0625]), offset=torch.tensor([-7.0]), multiplier=torch.rand(size) + 0.5)


@pytest.mark.parametrize(
    ("size", "how"),
    [
        (4096, InputRounding(hadamard_block=512)),
        (576, InputRounding(hadamard_block=64, steps=127.5)),
        (1536, InputRounding(multiplier=torch.rand(1536) + 0.5)),
        (1408, InputRounding(hadamard_block=128, multiplier=torch.rand(1408) + 0.5)),
        (80, InputRounding(steps=127.5)),
        (576, static(576)),
        (4096, static(4096)),
        (4688, static(4688)),
        (5200, InputRounding(multiplier=torch.rand(5200) + 0.5, steps=127.5)),
        (576, InputRounding(hadamard_block=64, steps=WIDE_INPUT_STEPS)),
        (80, InputRounding(steps=WIDE_INPUT_STEPS)),
        (576, InputRounding(hadamard_block=64, steps=ASYMMETRIC_INPUT_STEPS)),
        (80, InputRounding(steps=ASYMMETRIC_INPUT_STEPS)),
        (5200, InputRounding(multiplier=torch.rand(5200) + 0.5, steps=ASYMMETRIC_INPUT_STEPS)),
        (11008, InputRounding(hadamard_block=256, steps=ASYMMETRIC_INPUT_STEPS)),
        (5200, InputRounding(multiplier=torch.rand(5200) + 0.5, steps=WIDE_INPUT_STEPS)),
        (11008, InputRounding(hadamard_block=256, steps=WIDE_INPUT_STEPS)),
    ],
)
def test_rounds_as_the_reference(size: int, how: InputRounding) -> None:
    x = rows_of(3, size)
    check(round_inputs(x, how), rounded_by_reference(x, how))


def test_static_steps_are_rounded_before_the_offset_and_clamped_after_it() -> None:
    x = torch.tensor([[1e30, -1e30, 3e7, -3e7, 3e5, -3e5, 8, -8, 0, -0.0, 0.5 / 16, 1.5 / 16, -0.5 / 16, 1, 2, 3]])
    how = InputRounding(scale=torch.tensor([0.0625]), offset=torch.tensor([3.0]))
    expected = [127, -128, 127, -128, 127, -128, 127, -125, 3, 3, 3, 5, 3, 19, 35, 51]
    assert round_inputs(x, how).values.tolist() == [expected]
    check(round_inputs(x, how), rounded_by_reference(x, how))


@pytest.mark.parametrize("how", [InputRounding(), InputRounding(steps=ASYMMETRIC_INPUT_STEPS)])
def test_a_row_of_zeros_has_a_scale(how: InputRounding) -> None:
    x = torch.zeros(1, 64)
    check(round_inputs(x, how), rounded_by_reference(x, how))


@pytest.mark.parametrize("size", [256, 5200])
def test_ranges_of_one_sign_and_of_halves(size: int) -> None:
    """0 is always among the integers, and the greatest value at most 255 steps above the least."""
    how = InputRounding(steps=ASYMMETRIC_INPUT_STEPS)
    positive, halves = torch.rand(size) + 0.1, torch.arange(size) % 256 - 127.5
    x = torch.stack((positive, -positive, halves, halves + 27, torch.full((size,), torch.nan), positive * 1e-35))
    rounded = round_inputs(x, how)
    check(round_inputs(x[[0, 1, 2, 3, 5]].contiguous(), how), rounded_by_reference(x[[0, 1, 2, 3, 5]], how))
    assert rounded.zero is not None
    assert rounded.scale is not None
    assert rounded.zero[:3].tolist() == [-128, 127, 0]
    assert rounded.scale.isnan().tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize(("size", "with_bias"), [(576, True), (4096, False), (80, False)])
def test_rms_norm_comes_first(size: int, with_bias: bool) -> None:
    x = rows_of(3, size)
    weight, bias = torch.randn(size), torch.randn(size) if with_bias else None
    norm = modules.RMSNorm(weight.numpy(), 1e-5, None if bias is None else bias.numpy())
    normed = torch.from_numpy(np.array(norm(x.numpy())))
    for how in (InputRounding(hadamard_block=math.gcd(size, 64)), static(size)):
        check(round_inputs(x, how, DeviceNorm(weight, 1e-5, bias)), rounded_by_reference(normed, how))


@pytest.mark.parametrize(("size", "block"), [(1536, 512), (11008, 256), (688, 0)])
def test_silu_comes_first(size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = torch.randn(2, 2 * size) * 5
    gate_up[1, -1] = 300.0
    gate_up[0, :6] = torch.tensor([90.0, -90.0, -87.5, -88.5, 0.0, -200.0])
    gate, up = gate_up[:, :size].contiguous(), gate_up[:, size:].contiguous()
    product = torch.from_numpy(np.array(modules.silu_times(gate.numpy(), up.numpy())))
    how = InputRounding(hadamard_block=block)
    expected = rounded_by_reference(product, how)
    check(round_gated(gate_up, how), expected)
    # Whole rows, as of many tokens.
    monkeypatch.setattr(rounding, "_FEW_TOKENS", 0)
    check(round_gated(gate_up, how), expected)


def test_rows_that_do_not_fit_registers_are_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = torch.randn(2, 2 * 1408)
    all_steps = INPUT_STEPS, ASYMMETRIC_INPUT_STEPS, WIDE_INPUT_STEPS
    hows = [InputRounding(hadamard_block=128, steps=steps) for steps in all_steps]
    kept = [round_gated(gate_up, how) for how in hows]
    monkeypatch.setattr(rounding, "_KEPT_PER_THREAD", 1)
    for how, expected in zip(hows, kept, strict=True):
        check(round_gated(gate_up, how), expected)


def test_nothing_outside_is_read_or_written() -> None:
    size = 592
    narrow = InputRounding(multiplier=torch.full((1024,), math.nan)[:size].fill_(1.5))
    padded = torch.full((4 * size,), math.nan)
    x = padded[size : 3 * size].view(2, size)
    x.copy_(torch.randn(2, size))
    for how in (narrow, replace(narrow, steps=ASYMMETRIC_INPUT_STEPS), replace(narrow, steps=WIDE_INPUT_STEPS)):
        values, scale = torch.full((6, size), 77, dtype=torch.int8), torch.full((4,), 5.0)
        zero = torch.full((4,), 1000, dtype=torch.int32)
        inner = slice(1, 1 + 2 * how.rows_of_bytes)
        inside = RoundedInputs(values[inner], scale[1:3], zero[1:3] if how.has_zeros else None)
        round_inputs(x, how, out=inside)
        check(inside, rounded_by_reference(x, how))
        assert values[0].eq(77).all()
        assert values[inner.stop :].eq(77).all()
        assert scale[[0, 3]].eq(5).all()
        assert zero[[0, 3]].eq(1000).all()


def test_a_row_has_its_bits_in_any_batch() -> None:
    x, how = rows_of(4, 576), InputRounding(hadamard_block=64, steps=ASYMMETRIC_INPUT_STEPS)
    norm = DeviceNorm(torch.randn(576), 1e-6)
    together = round_inputs(x, how, norm)
    for row in range(4):
        alone = round_inputs(x[row : row + 1], how, norm)
        assert together.scale is not None
        assert together.zero is not None
        some = slice(row, row + 1)
        check(alone, RoundedInputs(together.values[some], together.scale[some], together.zero[some]))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="40 inputs are not a multiple of 16"):
        round_inputs(torch.zeros(1, 40), InputRounding())
    with pytest.raises(ValueError, match="576 inputs are not a multiple of 128"):
        round_inputs(torch.zeros(1, 576), InputRounding(hadamard_block=128))
