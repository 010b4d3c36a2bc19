"""The W8A8 arithmetic: compared with msmodelslim's output, then its bounds and corner cases."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from faquant.errors import CheckpointError
from faquant.formats.msmodelslim.linears import unpack_deq_scale
from faquant.quantization.mindie import w8a8

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
DTYPES = {"fp32": ("float_float32", torch.float32), "bf16": ("float_bfloat16", torch.bfloat16)}
WEIGHTS = "quant_model_weight_w8a8.safetensors"


@pytest.mark.parametrize("kind", DTYPES)
def test_weights_and_derived_tensors_are_the_tool_s(kind: str) -> None:
    source, dtype = DTYPES[kind]
    floats = load_file(GOLDEN / source / "model.safetensors")
    wanted = load_file(GOLDEN / f"w8a8_fa_{kind}_ascendV1" / WEIGHTS)
    linears = [name.removesuffix(".deq_scale") for name in wanted if name.endswith(".deq_scale")]
    assert len(linears) == 18
    for name in linears:
        weight, scale = w8a8.quantize_weight(floats[f"{name}.weight"])
        assert torch.equal(weight, wanted[f"{name}.weight"]), name
        assert scale.dtype == dtype
        assert torch.equal(scale, wanted[f"{name}.weight_scale"]), name
        step = w8a8.deq_scale(wanted[f"{name}.input_scale"], scale)
        assert torch.equal(w8a8.pack_deq_scale(step, dtype), wanted[f"{name}.deq_scale"]), name
        assert torch.equal(w8a8.quant_bias(weight, wanted[f"{name}.input_offset"], step), wanted[f"{name}.quant_bias"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 32), magnitude=st.floats(1e-3, 1e2))
def test_rounding_errors_are_bounded(dtype: torch.dtype, seed: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(7, 33, generator=generator) * magnitude).to(dtype)
    x = ((torch.randn(5, 33, generator=generator) + torch.randn(1, generator=generator)) * magnitude).to(dtype)
    eps = torch.finfo(dtype).eps

    stored, scale = w8a8.quantize_weight(weight)
    assert (weight.double() - stored.double() * scale.double()).abs().le(scale.double() * (0.5 + 256 * eps)).all()

    observer = w8a8.InputObserver()
    observer.update(x)
    input_scale, offset = w8a8.input_scale_offset(*observer.range())
    assert -128 <= offset.item() <= 127
    error = (w8a8.fake_quantize_input(x, input_scale, offset).double() - x.double()).abs()
    # The range's own ends are rounded to the dtype too.
    assert error.le(input_scale.double() * (1 + 512 * eps)).all()


def test_integer_product_equals_the_fake_quantized_linear() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 64, generator=generator)
    bias = torch.randn(6, generator=generator)
    x = torch.randn(9, 64, generator=generator) + 0.3
    stored, scale = w8a8.quantize_weight(weight)
    input_scale, offset = w8a8.input_scale_offset(x.min(), x.max())
    step = w8a8.deq_scale(input_scale, scale)
    x8 = (x / input_scale + offset).round().clamp(-128, 127).double()
    integer = (x8 @ stored.double().T + w8a8.quant_bias(stored, offset, step, bias)) * step.double()
    fake = w8a8.fake_quantize_linear(x, w8a8.fake_quantize_weight(weight, scale), bias, input_scale, offset)
    assert (integer - fake).abs().le(0.51 * step + 1e-5).all()


def test_ranges_are_averaged_and_hold_zero() -> None:
    observer = w8a8.InputObserver()
    observer.update(torch.tensor([[1.0, 3.0]]))
    observer.update(torch.tensor([[-5.0, 1.0], [2.0, 9.0]]))
    minimum, maximum = observer.range()
    assert (minimum.item(), maximum.item()) == (-2.0, 6.0)
    assert w8a8.input_scale_offset(minimum, maximum)[1].item() == -64
    scale, offset = w8a8.input_scale_offset(torch.tensor(3.0), torch.tensor(5.1))
    assert (scale.item(), offset.item()) == (pytest.approx(0.02), -128)


def test_weight_may_reach_minus_128_only_while_calibrating() -> None:
    # The scale is three steps of float16's smallest number instead of 3.4.
    weight = torch.tensor([[-2.6e-5, 1e-5]], dtype=torch.float16)
    stored, scale = w8a8.quantize_weight(weight)
    assert (w8a8.fake_quantize_weight(weight, scale) / scale)[0, 0].item() == -128
    assert stored[0, 0].item() == -127


def test_rows_of_zeros_keep_a_scale_in_float16() -> None:
    weight, scale = w8a8.quantize_weight(torch.zeros(2, 8, dtype=torch.float16))
    input_scale, offset = w8a8.input_scale_offset(*torch.tensor([-1.0, 2.0], dtype=torch.float16))
    assert (input_scale * scale).eq(0).all()
    step = w8a8.deq_scale(input_scale, scale)
    bias = w8a8.quant_bias(weight, offset, step, torch.tensor([0.25, 0.0], dtype=torch.float16))
    assert (bias * step).tolist() == [pytest.approx(0.25, rel=1e-4), 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packing_is_undone_by_the_reader(dtype: torch.dtype) -> None:
    scale = torch.tensor([1e-30, 3.5e-4, 7.0])
    packed = w8a8.pack_deq_scale(scale, dtype)
    assert packed.dtype == (torch.float32 if dtype == torch.bfloat16 else torch.int64)
    assert unpack_deq_scale(packed.numpy(), "x").tolist() == scale.tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = torch.tensor([[1.0, bad]])
    with pytest.raises(CheckpointError, match="not finite"):
        w8a8.quantize_weight(values)
    with pytest.raises(CheckpointError, match="not finite"):
        w8a8.InputObserver().update(values)


def test_no_data_and_no_room_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no calibration data"):
        w8a8.InputObserver().range()
    with pytest.raises(CheckpointError, match="int32"):
        w8a8.quant_bias(torch.zeros(1, 4, dtype=torch.int8), torch.zeros(1), torch.tensor([1e-12]), torch.tensor([1.0]))
