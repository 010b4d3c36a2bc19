import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from oracles.threads import set_threads

# What a test needs is in it; transformers, datasets and lm_eval would else ask the hub. They read this when imported.
os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["oracles.tokenizer_kinds"]

# A slow machine is no fault of the code. FAQUANT_EXPLORE=1 draws other examples each time.
settings.register_profile("faquant", deadline=None, derandomize=not os.environ.get("FAQUANT_EXPLORE"))
settings.load_profile("faquant")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The work is small, and the machine may be busy: threads would wait for each other."""
    set_threads(1)
    yield
    set_threads(1)
