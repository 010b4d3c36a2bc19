from collections.abc import Iterator
from typing import Any

import openai
import pytest

from oracles import chromium, random_decoder
from oracles.tiny_server import TinyServer


@pytest.fixture(scope="session", autouse=True)
def no_model_is_kept() -> Iterator[None]:
    """pytest keeps these modules to its very end, and nanobind would report the cached models as leaked."""
    yield
    random_decoder.parts.cache_clear()


@pytest.fixture(scope="session")
def shared_server(no_model_is_kept: None) -> Iterator[TinyServer]:
    with TinyServer() as server:
        yield server


@pytest.fixture
def server(shared_server: TinyServer) -> Iterator[TinyServer]:
    """One server for all tests; after each test, no request may hold pages."""
    yield shared_server
    shared_server.wait_until_nothing_is_held()


@pytest.fixture
def client(server: TinyServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = chromium.start()
    yield driver
    driver.quit()
