"""Tests of the plugin for vLLM. Those marked `vllm` need it (make test-vllm); the others run everywhere."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HAS_VLLM = find_spec("vllm") is not None
if not HAS_VLLM:
    needing = ("checkpoints", "contract", "engine", "ranks", "refusals", "serve")
    collect_ignore = [f"test_{name}.py" for name in needing]

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""GiB of cache; and no binding, which takes a core for vLLM's own processes."""


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with the recipe `default`."""
    import demo_model
    from faquant import api

    directory = tmp_path_factory.mktemp("models") / "smollm2"
    api.quantize(demo_model.fetch_demo_model(), directory, device="cpu")
    return directory


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    os.environ.update(ENVIRONMENT)
