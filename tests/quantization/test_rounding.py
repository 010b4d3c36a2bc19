"""Rounding weights: to nearest, and with compensation for correlated inputs."""

import threading
import time
from typing import Any

import pytest
import torch

from faquant.errors import CheckpointError
from faquant.kernels.quantizers import hadamard
from faquant.quantization import rounding
from faquant.quantization.rounding import (
    Gram,
    TransformedGram,
    balance,
    compensations,
    round_to_nearest,
    round_with_compensation,
)
from oracles.threads import set_threads


def _correlated(tokens: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator) * torch.logspace(0, -2, size)[:, None]
    return torch.randn(tokens, size, generator=generator) @ mix


def _output_error(x: torch.Tensor, weight: torch.Tensor, result: rounding.QuantizedWeight) -> float:
    return float((x.double() @ (weight.double() - result.weight * result.scale.double()).T).square().mean())


def _compensated(weight: torch.Tensor, gram: Gram) -> rounding.QuantizedWeight:
    return round_with_compensation(weight, compensations([TransformedGram(gram)])[0])


def _gptq(weight: torch.Tensor, gram: torch.Tensor, damping: float) -> torch.Tensor:
    """GPTQ (arXiv 2210.17323, algorithm 1) in float64, with the factor of the inverse: integers [n, k]."""
    gram = gram + torch.eye(len(gram)) * damping * gram.diagonal().mean()
    factor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    steps = weight / (weight.abs().amax(1, keepdim=True) / 127)
    for i in range(steps.shape[1]):
        rounded = steps[:, i].round().clamp(-127, 127)
        error = (steps[:, i] - rounded) / factor[i, i]
        steps[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
        steps[:, i] = rounded
    return steps


@pytest.mark.parametrize("size", [1, 15, 127, 128, 129, 300])
@pytest.mark.parametrize("outputs", [1, 16, 37])
def test_the_rounding_is_gptq(size: int, outputs: int) -> None:
    x, gram = _correlated(4000, size), Gram(size)
    gram.add(x)
    weight = torch.randn(outputs, size, generator=torch.Generator().manual_seed(1)).double()
    got = _compensated(weight, gram).weight
    expected = _gptq(weight, x.double().T @ x.double(), rounding._DAMPING + rounding._SHRINKAGE * size / 4000)
    # A sum within float32's rounding of a half step may go either way, and changes what follows in its row.
    assert (got != expected).any(1).float().mean() < 0.1


@pytest.mark.parametrize(("size", "block"), [(96, 2048), (256, 64), (300, 2048)])
def test_compensation_changes_the_outputs_less(size: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "GRAM_BLOCK", block)
    x, weight = _correlated(2000, size), torch.randn(40, size, generator=torch.Generator().manual_seed(1)).double()
    gram = Gram(size)
    for part in x.split(700):
        gram.add(part)
    nearest, compensated = round_to_nearest(weight), _compensated(weight, gram)
    assert torch.equal(nearest.scale, compensated.scale)
    fresh = _correlated(500, size, seed=0)
    assert _output_error(fresh, weight, compensated) < 0.6 * _output_error(fresh, weight, nearest)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_input_that_is_not_finite_is_refused(value: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "GRAM_BLOCK", 16)
    monkeypatch.setattr(rounding, "_TILE", 4)
    set_threads(threads)
    x, gram = _correlated(50, 96), Gram(96)
    x[20, 70] = value
    gram.add(x)
    with pytest.raises(CheckpointError, match="Calibration overflowed"):
        compensations([TransformedGram(gram)])


def test_few_blocks_are_factored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them needs much memory."""
    monkeypatch.setattr(rounding, "GRAM_BLOCK", 16)
    monkeypatch.setattr(rounding, "_AT_ONCE", 2)
    set_threads(8)
    gram, compensation = Gram(16 * 20), rounding._compensation
    gram.add(_correlated(50, gram.size))
    lock, running, most = threading.Lock(), 0, 0

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return compensation(*arguments)

    monkeypatch.setattr(rounding, "_compensation", watched)
    assert len(compensations([TransformedGram(gram)])[0]) == 20
    assert most == 2


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).double()
    gram = Gram(64)
    gram.lower[0] = torch.eye(64) * 5
    assert torch.equal(_compensated(weight, gram).weight, round_to_nearest(weight).weight)


def test_a_gram_matrix_of_blocks_is_the_diagonal_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "GRAM_BLOCK", 32)
    x = _correlated(50, 96)
    gram = Gram(96)
    gram.add(x)
    whole = x.T @ x
    assert gram.lower.shape == (3, 32, 32)
    torch.testing.assert_close(gram.transformed(1, None, 0).float(), whole[32:64, 32:64])


def test_a_gram_matrix_is_transformed_as_its_inputs_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "GRAM_BLOCK", 32)
    x, equalizer = _correlated(50, 96), torch.linspace(0.1, 3, 96)
    gram, direct = Gram(96), Gram(96)
    gram.add(x)
    direct.add(hadamard(x / equalizer, 16))
    for number in range(3):
        transformed = gram.transformed(number, equalizer.double(), 16)
        torch.testing.assert_close(transformed, direct.transformed(number, None, 0), rtol=1e-3, atol=1e-3)
    assert gram.tokens == 50
    torch.testing.assert_close(gram.square_sums().float(), x.square().sum(0))
    torch.testing.assert_close(gram.peaks, (x / x.square().mean(-1, keepdim=True).sqrt()).abs().amax(0))


def test_balancing_makes_inputs_and_weights_lose_least_after_a_rotation() -> None:
    """Σx²/e² · Σw²e² is the cost of rounding both; no other e is better."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.rand(20, generator=generator).double() ** 4 for _ in range(2))

    def cost(square: torch.Tensor) -> float:
        return float((x / square).sum() * (w * square).sum())

    best = balance(x, w)
    assert cost(best) == pytest.approx(float((x * w).sqrt().sum() ** 2))
    for _ in range(20):
        assert cost(best * (torch.rand(20, generator=generator) + 0.5)) > cost(best)
    assert cost(torch.ones(20)) > 1.3 * cost(best)


def test_a_channel_that_is_never_used_is_balanced_with_finite_numbers() -> None:
    assert balance(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])).isfinite().all()
    assert balance(torch.zeros(3), torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("inputs", ["never seen", "always zero", "one of them zero"])
def test_inputs_that_say_nothing_leave_rounding_to_nearest(inputs: str) -> None:
    gram, weight = Gram(16), torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).double()
    x = torch.zeros(30, 16)
    if inputs == "one of them zero":
        x = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
        x[:, 3] = 0
    if inputs != "never seen":
        gram.add(x)
    result, nearest = _compensated(weight, gram), round_to_nearest(weight)
    unseen = slice(3, 4) if inputs == "one of them zero" else slice(None)
    assert torch.equal(result.weight[:, unseen], nearest.weight[:, unseen])


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.zeros(3, 8).double()
    result = round_to_nearest(weight)
    assert not result.weight.any()
    assert (result.scale > 0).all()
