"""The Host header: accepted names of the server."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from oracles.tiny_server import NAME, TinyServer


@pytest.fixture(scope="module")
def named() -> Iterator[TinyServer]:
    with TinyServer(allowed_hosts=("Box.example", "fd00::1")) as server:
        yield server


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.8.9.1", "[::1]", "[::1]:8000", "box.Example:80", "[fd00::1]:8"],
)
def test_names_of_this_machine(named: TinyServer, host: str) -> None:
    assert httpx.get(f"{named.url}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "xbox.example"),
        *("", ":80", "10.0.0.1", "0.0.0.0", "[::2]", "[::1", "::1", "localhost:80:80", "user@localhost", "localhost/x"),
        *("localhost,evil.example", "127.0.0.1%eth0", "2130706433", "0x7f.1", "local host", "localhost:8x", "\xe9"),
    ],
)
def test_any_other_name_is_refused(named: TinyServer, host: str) -> None:
    for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/health"), ("POST", "/v1/chat/completions")):
        response = httpx.request(method, named.url + path, headers={"Host": host.encode("latin-1")})
        assert response.status_code == 421
        assert response.json()["error"]["code"] == "unknown_host"
        assert "x-request-id" in response.headers


def test_a_request_without_a_host_is_refused(named: TinyServer) -> None:
    with socket.create_connection(("127.0.0.1", named.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 421 " in connection.recv(100)


def test_by_default_any_name_is_accepted() -> None:
    for settings in ({}, {"allowed_hosts": ("*",)}):
        with TinyServer(**settings) as server:
            response = httpx.get(f"{server.url}/v1/models", headers={"Host": "other.example"})
            assert response.json()["data"][0]["id"] == NAME
