"""The endpoints that do not generate."""

from typing import Any

import httpx
import openai

import faquant.server.service as service_module
from oracles.tiny_server import GREEDY, NAME, TinyServer, tokenizer


def test_models(client: openai.OpenAI, server: TinyServer) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME) == model
    assert model.model_dump()["max_model_len"] == server.service.max_model_len


def test_tokenize_and_back(server: TinyServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        got = http.post("/tokenize", json={"prompt": "Größe"}).json()
        assert got["tokens"] == tokenizer().encode("Größe")
        assert got["count"] == len(got["tokens"])
        assert http.post("/detokenize", json={"tokens": got["tokens"]}).json() == {"prompt": "Größe"}
        messages = [{"role": "user", "content": "Hi"}]
        chat = http.post("/tokenize", json={"messages": messages}).json()
        assert chat["tokens"] == tokenizer().encode_chat(messages)
        assert http.post("/tokenize", json={}).status_code == 400
        wrong = http.post("/tokenize", json={"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]})
        assert wrong.json()["error"]["param"] == "tools"
        outside = http.post("/detokenize", json={"tokens": [*got["tokens"], 2**31]})
        assert outside.status_code == 400
        assert outside.json()["error"]["param"] == "tokens"


def test_health_and_version(server: TinyServer) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/version").json() == {"version": service_module.VERSION}


def test_metrics(server: TinyServer, client: openai.OpenAI) -> None:
    client.completions.create(model=NAME, prompt="One day", max_tokens=5, extra_body={"ignore_eos": True})
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert float(lines["faquant_generated_tokens_total"]) >= 5
    assert float(lines["faquant_cache_pages"]) == server.engine.state().num_pages
    assert float(lines['faquant_answers_total{reason="length"}']) >= 1
    assert float(lines['faquant_http_requests_total{method="POST",path="/v1/completions",status="200"}']) >= 1
    assert float(lines["faquant_first_token_seconds_count"]) >= 1
    assert any(line.startswith("faquant_info{") and 'model="tiny"' in line for line in lines)


def test_metrics_count_a_prompt_once_for_all_its_answers_as_usage_does(
    server: TinyServer, client: openai.OpenAI
) -> None:
    def counted() -> tuple[int, ...]:
        stats = server.engine.stats()
        return stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens

    prompts = ["counted once " * 30, "and this one too " * 30]
    for asked in (prompts, prompts[:1]):
        before = counted()
        usage = client.completions.create(model=NAME, prompt=asked, n=3, max_tokens=4, **GREEDY).usage
        assert usage is not None
        details: Any = usage.prompt_tokens_details
        expected = (usage.prompt_tokens, details.cached_tokens, usage.completion_tokens)
        assert tuple(after - some for after, some in zip(counted(), before, strict=True)) == expected
    assert details.cached_tokens > 0, "the second time it was there"
