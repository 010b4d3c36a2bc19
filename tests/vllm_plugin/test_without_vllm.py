"""The plugin where vLLM is missing or of another version."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from faquant.errors import UsageError
from faquant.vllm import register
from faquant.vllm.measuring import Prompts


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    vars(module).update(__version__="0.33.1", LLM=None, SamplingParams=None)
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("other_version")
def test_another_version_is_told_about_and_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    register()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "needs vLLM 0.32, but this is vLLM 0.33.1" in record.getMessage()


@pytest.mark.usefixtures("other_version")
def test_measuring_in_another_version(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs vLLM 0\.32, but this is vLLM 0\.33\.1"):
        Prompts(tmp_path, 10, 100)


def test_measuring_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install 'faquant\[vllm\]'"):
        Prompts(tmp_path, 10, 100)
