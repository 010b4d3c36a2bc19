import pytest

from oracles.exact_fma import use_in_interpreter


@pytest.fixture
def exact_fma(monkeypatch: pytest.MonkeyPatch) -> None:
    use_in_interpreter(monkeypatch)
