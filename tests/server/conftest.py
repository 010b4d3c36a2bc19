from collections.abc import Iterator

import openai
import pytest

from oracles.tiny_server import TinyServer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[TinyServer]:
    with TinyServer() as server:
        yield server


@pytest.fixture
def server(shared_server: TinyServer) -> Iterator[TinyServer]:
    """One for all tests; after each, nothing is held any more."""
    yield shared_server
    shared_server.wait_until_nothing_is_held()


@pytest.fixture
def client(server: TinyServer) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client
