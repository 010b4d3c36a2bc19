from collections.abc import Iterator

import pytest

from oracles import random_decoder


@pytest.fixture(scope="session", autouse=True)
def no_model_is_kept() -> Iterator[None]:
    """hypothesis keeps functions of tests/oracles to the end, and nanobind would report the cached models as leaked."""
    yield
    random_decoder.parts.cache_clear()
