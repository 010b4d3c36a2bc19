"""API keys, limits, and clients that disconnect, read slowly, or send too many requests."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from faquant.sampling.sampler import SamplingParams
from faquant.server.http import connection
from faquant.server.http.middleware import Supervisor
from faquant.server.operate.logs import RateLimit
from oracles.tiny_server import GREEDY, NAME, BytesEngine, TinyServer, alone, tokenizer

ENDLESS: Any = {"model": NAME, "prompt": "One day", "max_tokens": 3000, **GREEDY}
SHORT: Any = {"model": NAME, "prompt": "One day", "max_tokens": 8, **GREEDY}
EXPECTED = alone(tokenizer().encode("One day"), SamplingParams(temperature=0, ignore_eos=True, max_tokens=8)).text


@pytest.fixture
def slow_server() -> Iterator[TinyServer]:
    """A slow server with one running and one waiting sequence."""
    with TinyServer(BytesEngine(slow=0.005, pages=40, max_num_seqs=1), max_queue=1) as server:
        yield server
        server.wait_until_nothing_is_held()


def raw_request(server: TinyServer, body: Any) -> socket.socket:
    data = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


def flat(asked: Any) -> Any:
    return {key: value for key, value in asked.items() if key != "extra_body"} | asked["extra_body"]


def test_the_key() -> None:
    with TinyServer(api_key="secret") as server:
        for key in ("x", "Secret", "secret2", "secre"):
            for path in ("/v1/models", "/metrics", "/v1/nothing", "/openapi.json"):
                response = httpx.get(server.url + path, headers={"Authorization": f"Bearer {key}"})
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(server.url + "/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="other").models.list()
        assert server.client(api_key="secret").models.list().data
        for scheme, status in (("bearer", 200), ("Basic", 401)):  # case-insensitive, RFC 9110
            shown = {"Authorization": f"{scheme} secret"}
            assert httpx.get(f"{server.url}/v1/models", headers=shown).status_code == status


def test_web_pages_may_not_call_unless_they_are_named(server: TinyServer) -> None:
    asking = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions", headers=asking).headers
    with TinyServer(allowed_origins=("https://example.org",), api_key="secret") as named:
        answer = httpx.options(f"{named.url}/v1/completions", headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        refused = httpx.get(f"{named.url}/v1/models", headers={"Origin": "https://example.org"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://example.org"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(chunked: bool) -> None:
    with TinyServer(max_body=2000) as server, httpx.Client(base_url=server.url) as http:
        body = json.dumps({"prompt": "x" * 3000}).encode()
        content = iter([body[:1500], body[1500:]]) if chunked else body
        response = http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_a_request_to_a_full_queue_is_refused_with_retry_after(slow_server: TinyServer) -> None:
    client = slow_server.client()
    with client.completions.create(**ENDLESS, stream=True) as first:
        next(iter(first))
        waiting = raw_request(slow_server, {**flat(ENDLESS), "stream": True})
        end = time.monotonic() + 10
        while slow_server.service.gate.inside < 2 and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**SHORT)
        assert int(caught.value.response.headers["retry-after"]) > 0
        waiting.close()
    slow_server.wait_until_nothing_is_held()
    assert client.completions.create(**SHORT).choices[0].text == EXPECTED
    with pytest.raises(openai.BadRequestError, match="at most 2"):
        client.completions.create(**SHORT, n=3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_pages(slow_server: TinyServer, stream: bool) -> None:
    for tokens_to_read in (1, 0) if stream else (0,):
        connection = raw_request(slow_server, {**flat(ENDLESS), "stream": stream})
        if tokens_to_read:
            assert connection.recv(100)
        end = time.monotonic() + 10
        while not slow_server.engine.state().used_pages and time.monotonic() < end:
            time.sleep(0.005)
        assert slow_server.engine.state().used_pages
        steps = slow_server.engine.stats().steps
        connection.close()
        slow_server.wait_until_nothing_is_held()
        assert slow_server.engine.stats().steps - steps < 100  # of 3000


def test_a_slow_reader_delays_no_other_client() -> None:
    with TinyServer(BytesEngine(pages=80)) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = {**flat(ENDLESS), "stream": True, "logprobs": 20, "max_tokens": 500}
        slow = [raw_request(server, body) for _ in range(3)]  # clients that do not read
        assert server.client().completions.create(**SHORT).choices[0].text == EXPECTED
        end = time.monotonic() + 60
        while server.engine.has_work and time.monotonic() < end:
            time.sleep(0.05)
        assert server.engine.state().used_pages == 0  # the engine has finished them anyway
        assert server.service.gate.inside == 3
        for connection in slow:
            connection.close()
        server.wait_until_nothing_is_held()


def test_the_time_of_a_request_is_limited() -> None:
    with TinyServer(BytesEngine(slow=0.01, pages=40), request_timeout=0.3) as server:
        client = server.client()
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**ENDLESS)
        assert caught.value.status_code == 504
        server.wait_until_nothing_is_held()
        with pytest.raises(openai.APIError, match="longer than"):
            list(client.completions.create(**ENDLESS, stream=True))
        server.wait_until_nothing_is_held()
        unfinished = socket.create_connection(("127.0.0.1", server.port))
        unfinished.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in unfinished.recv(100)
        unfinished.close()


def test_a_connection_without_complete_headers_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    with TinyServer(BytesEngine(slow=0.02, pages=40)) as server:
        slow = raw_request(server, {**flat(SHORT), "max_tokens": 50})  # takes longer, and is let be
        for sent in (b"", get, get + b"\r\n" + get):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.sendall(sent)
                received = b""
                while part := client.recv(4096):
                    received += part
                assert received.count(b" 200 OK") == sent.count(b"\r\n\r\n")
        assert b" 200 OK" in slow.recv(100)
        slow.close()


def test_too_many_connections_are_logged_once() -> None:
    limit = RateLimit()
    records = [logging.makeLogRecord({"msg": "full", "created": at}) for at in (1.0, 2.0, 10.9, 11.1)]
    assert [limit.filter(record) for record in records] == [True, False, False, True]


@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_the_timeout_applies_wherever_a_reader_stops(stops_at: int) -> None:
    body = "http.response.body"
    messages: list[Any] = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
        {"type": body, "body": b"x", "more_body": True},
        {"type": body, "body": b"", "more_body": False},
    ]
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            for message in messages:
                await send(message)
        finally:
            ended.append(True)

    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(asked, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message is messages[stops_at]:
            await asyncio.Event().wait()

    asyncio.run(asyncio.wait_for(Supervisor(app, timeout=0.05)({"type": "http"}, receive, send), 10))
    assert ended


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_reported_and_the_server_continues(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    with TinyServer() as server:
        client = server.client()
        run, calls = server.engine._decoder.run, iter(range(1000))

        def failing(chunks: object) -> object:
            if next(calls) == 3:
                raise RuntimeError("out of luck")
            return run(chunks)  # type: ignore[arg-type]

        server.engine._decoder.run = failing  # type: ignore[assignment, method-assign]
        with pytest.raises(openai.APIError, match="out of luck"):
            list(client.completions.create(**SHORT, stream=stream))
        server.wait_until_nothing_is_held()
        assert client.completions.create(**SHORT).choices[0].text == EXPECTED


def test_an_internal_error_reveals_no_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with TinyServer() as server:
        monkeypatch.setattr(server.service, "check_model", lambda name: 1 // 0)
        response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 500
        assert "Zero" not in response.text
        assert response.headers["x-request-id"] in {
            record.fields["id"] for record in caplog.records if "fields" in vars(record)
        }  # type: ignore[attr-defined]
        assert "ZeroDivisionError" in caplog.text


def test_during_shutdown_new_requests_are_refused_and_running_ones_finish(slow_server: TinyServer) -> None:
    client = slow_server.client()
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(client.completions.create(**SHORT).choices[0].text))
    thread.start()
    end = time.monotonic() + 10
    while not slow_server.service.gate.inside and time.monotonic() < end:
        time.sleep(0.001)
    slow_server.service.gate.closed = True
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(**SHORT)
    assert caught.value.status_code == 503
    assert httpx.get(f"{slow_server.url}/health").status_code == 503
    thread.join()
    assert got == [EXPECTED]


def test_the_log_has_one_line_per_request_and_no_text(server: TinyServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "faquant.server")
    with httpx.Client(base_url=server.url) as http:
        body = {"prompt": "confidential", "max_tokens": 5, "ignore_eos": True}
        response = http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        forged = http.post("/v1/completions", json={"prompt": 1}, headers={"X-Request-Id": 'a"} forged'})
        assert "forged" not in forged.headers["x-request-id"]
        assert http.get("/health").status_code == http.get("/metrics").status_code == 200  # not logged
        time.sleep(0.1)
    logged = [record.fields for record in caplog.records if record.name.startswith("faquant.server")]  # type: ignore[attr-defined]
    assert [fields["status"] for fields in logged] == [200, 400]
    assert logged[0]["id"] == "mine-1"
    assert logged[0]["prompt_tokens"] == len(tokenizer().encode("confidential"))
    assert logged[0]["completion_tokens"] == 5
    assert logged[0]["finish"] == "length"
    assert "confidential" not in json.dumps(logged)
