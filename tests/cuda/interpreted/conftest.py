import gc
from collections.abc import Iterator

import pytest
import torch

from oracles import random_decoder
from oracles.exact_fma import use_in_interpreter


@pytest.fixture
def exact_fma(monkeypatch: pytest.MonkeyPatch) -> None:
    use_in_interpreter(monkeypatch)


@pytest.fixture
def marked_memory() -> Iterator[None]:
    """New tensors hold NaN and the greatest integers, so a test can tell what was never written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def no_model_is_kept() -> Iterator[None]:
    """nanobind would report cached models as leaked."""
    yield
    random_decoder.parts.cache_clear()
    gc.collect()
