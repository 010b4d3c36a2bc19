"""What doctor runs on a GPU: it passes, and notices a fault in each part."""

import math

import pytest
import torch
from torch import Tensor

from faquant.kernels.cuda import self_test
from faquant.kernels.cuda.pages import Int8Pages

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("exact_fma")]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a tile's end instead of a split's: the interpreter is slow."""
    monkeypatch.setattr(self_test, "PAST", 130)
    monkeypatch.setattr(self_test, "SEVERAL", 17)


def test_it_passes() -> None:
    assert self_test.self_test(CPU) == dict.fromkeys(
        ["attention", "int8 linears", "float linears", "norm, RoPE and SwiGLU"], True
    )


def up(x: Tensor) -> Tensor:
    """The next floats."""
    return torch.nextafter(x, torch.tensor(math.inf))


def test_the_last_bit_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, linear, rms_norm = Int8Pages.attend, self_test.linear, self_test.rms_norm
    with monkeypatch.context() as patch:
        patch.setattr(Int8Pages, "attend", lambda *some: up(attend(*some)))
        assert not self_test._attention(CPU)
    with monkeypatch.context() as patch:
        patch.setattr(self_test, "linear", lambda *some: lambda x: up(linear(*some)(x)))
        assert not self_test._int8_linears(CPU)
        assert not self_test._float_linears(CPU)
    with monkeypatch.context() as patch:
        patch.setattr(self_test, "rms_norm", lambda *some: up(rms_norm(*some)))
        assert not self_test._elementwise(CPU)
