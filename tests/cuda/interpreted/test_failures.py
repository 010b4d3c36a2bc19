"""A GPU's failures are told in one paragraph, and requests get them."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from faquant.errors import DeviceError
from faquant.kernels.cuda.backend import CudaBackend
from faquant.kernels.cuda.failures import explained
from oracles.tiny_engine import GREEDY, TinyEngine

pytestmark = pytest.mark.cuda

LOST = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"), "kv_cache_memory"),
        (OutOfResources(300_000, 232_448, "shared memory"), "does not fit this GPU"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "kv_cache_memory"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "needs a C compiler"),
        (RuntimeError(LOST), "illegal memory access was encountered. This process cannot use it any more"),
    ],
)
def test_one_line(error: Exception, text: str) -> None:
    told = str(explained(error))
    assert text in told
    assert "\n" not in told


def test_other_errors_are_not_the_gpu_s() -> None:
    assert explained(ValueError("a page holds a multiple of 128 tokens")) is None


@pytest.mark.parametrize("place", ["launched", "read"])
def test_a_step_that_fails_raises_it(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a GPU tells it: when results are read."""
    engine = TinyEngine()
    engine.add([1, 2, 3], GREEDY)

    def fail(*_: object) -> None:
        raise RuntimeError(LOST)

    monkeypatch.setattr(engine.model, "backend", CudaBackend())
    if place == "launched":
        monkeypatch.setattr(engine._decoder, "run", fail)
    else:
        monkeypatch.setattr("faquant.engine.engine.sample_rows", fail)
    with pytest.raises(DeviceError, match="The GPU failed: CUDA error: an illegal memory access"):
        engine.step()
