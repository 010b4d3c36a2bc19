"""Settings of vLLM's that a model cannot run with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import CompilationMode

from faquant.errors import UnsupportedError
from faquant.formats import open_checkpoint
from faquant.formats.base import Opened
from faquant.vllm.model import check
from oracles.tiny_models import tiny_model

pytestmark = pytest.mark.vllm


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    tiny_model("llama3", tmp_path)
    return open_checkpoint(tmp_path)


def settings(
    length: int = 512, stages: int = 1, mode: CompilationMode = CompilationMode.NONE, lora: object = None
) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=length),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        compilation_config=SimpleNamespace(mode=mode),
        lora_config=lora,
    )


def test_what_runs(opened: Opened) -> None:
    check(settings(), opened)
    check(settings(stages=2, mode=CompilationMode.VLLM_COMPILE), opened)


def test_a_pipeline_with_enforce_eager(opened: Opened) -> None:
    with pytest.raises(UnsupportedError, match="runs pipelines only without --enforce-eager"):
        check(settings(stages=2), opened)


def test_a_context_that_is_too_long(opened: Opened) -> None:
    with pytest.raises(UnsupportedError, match=r"Pass --max-model-len 512\."):
        check(settings(length=513), opened)


def test_lora(opened: Opened) -> None:
    with pytest.raises(UnsupportedError, match="LoRA"):
        check(settings(lora=object()), opened)
