"""A GPU's failures are told in one paragraph, and requests get them."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from faquant.errors import FaquantError
from faquant.kernels.cuda.backend import CudaBackend
from faquant.kernels.cuda.failures import explained
from oracles.tiny_engine import GREEDY, TinyEngine

pytestmark = pytest.mark.cuda

LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"), "kv_cache_memory"),
        (OutOfResources(300_000, 232_448, "shared memory"), "does not fit this GPU"),
        (LOST, "illegal memory access was encountered. This process cannot use it any more"),
    ],
)
def test_one_line(error: Exception, text: str) -> None:
    reason = explained(error)
    assert reason is not None
    assert text in reason
    assert "\n" not in reason


def test_other_errors_are_not_the_gpu_s() -> None:
    assert explained(ValueError("a page holds a multiple of 128 tokens")) is None


def test_a_step_that_fails_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TinyEngine()
    engine.add([1, 2, 3], GREEDY)

    def fail(*_: object) -> None:
        raise LOST

    monkeypatch.setattr(engine.model, "backend", CudaBackend())
    monkeypatch.setattr(engine._decoder, "run", fail)
    with pytest.raises(FaquantError, match="The GPU failed: CUDA error: an illegal memory access"):
        engine.step()
