"""The offline rotations are orthogonal, and folding them does not change a linear's result."""

import pytest
import torch

from faquant.quantization import rotate

SIZES = (64, 96, 80, 576, 72)


@pytest.mark.parametrize("size", SIZES)
def test_residual_rotation_is_orthogonal_and_spreads_every_channel(size: int) -> None:
    matrix = rotate.rotate_residual(torch.eye(size).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-12)
    # No entry may exceed a few times the even share of 1/√size.
    assert matrix.abs().max() < 2 / size**0.5


@pytest.mark.parametrize("size", SIZES)
def test_a_linear_between_rotated_streams_gives_the_rotated_result(size: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, size).double(), torch.randn(size, size).double()
    folded = rotate.rotate_residual_outputs(rotate.rotate_residual(weight))
    torch.testing.assert_close(rotate.rotate_residual(x) @ folded.T, rotate.rotate_residual(x @ weight.T))


@pytest.mark.parametrize(("dim", "block"), [(16, 16), (80, 16), (96, 32)])
def test_rotated_values_and_output_projection_cancel(dim: int, block: int) -> None:
    torch.manual_seed(0)
    v_weight, o_weight, bias = (torch.randn(*shape).double() for shape in ((2 * dim, 30), (20, 2 * dim), (2 * dim,)))
    x = torch.randn(5, 30).double()
    v = x @ rotate.rotate_head_outputs(v_weight, dim, block).T + rotate.rotate_head_outputs(bias, dim, block)
    got = v @ rotate.rotate_inputs(o_weight, dim, block).T
    torch.testing.assert_close(got, (x @ v_weight.T + bias) @ o_weight.T)


def test_hadamard_block_is_the_largest_power_of_two_within_the_limit() -> None:
    assert [rotate.hadamard_block(size) for size in (64, 96, 80, 7)] == [64, 32, 16, 1]
    assert [rotate.hadamard_block(size, 512) for size in (1536, 28672, 14336, 8192)] == [512, 512, 512, 512]
