import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from oracles.threads import set_threads

# Tests need no network; transformers, datasets and lm_eval would otherwise ask the hub. They read this on import.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts the tests in the background makes them, and what they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["oracles.tokenizer_kinds"]

# Their assertions that fail show the values, as those in the tests do.
pytest.register_assert_rewrite("oracles.tiny_engine", "oracles.tool_calls")

# A slow machine is not a failure of the code. FAQUANT_EXPLORE=1 draws other examples each time.
settings.register_profile("faquant", deadline=None, derandomize=not os.environ.get("FAQUANT_EXPLORE"))
settings.load_profile("faquant")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The work is small, and the machine may be busy: threads would wait for each other."""
    set_threads(1)
    yield
    set_threads(1)
