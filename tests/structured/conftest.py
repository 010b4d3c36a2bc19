import pytest

from oracles.constrained import Model
from oracles.tokenizer_kinds import BACKENDS, write_model


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_model(tmp_path_factory.mktemp(request.param), BACKENDS[request.param]()))


@pytest.fixture(scope="module")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_model(tmp_path_factory.mktemp("byte_level"), BACKENDS["byte_level"]()))
