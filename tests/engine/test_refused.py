"""Requests and configurations that an engine refuses."""

from dataclasses import replace
from typing import Any

import pytest

from faquant.engine.engine_config import EngineConfig
from faquant.errors import UsageError
from oracles.tiny_engine import GREEDY, TinyEngine, prompt


def test_invalid_requests_are_refused() -> None:
    engine = TinyEngine(pages=2)
    for ids, params, message in (
        ([], GREEDY, "no tokens"),
        ([0, 50], GREEDY, "outside the vocabulary of 50"),
        ([0, True], GREEDY, "outside the vocabulary"),
        ([0], replace(GREEDY, stop_token_ids=(50,)), "stop_token_ids has the token 50"),
        ([0], replace(GREEDY, logit_bias={50: 1.0}), "logit_bias has the token 50"),
        (prompt(249), GREEDY, "exceed the context of 256"),
    ):
        for what in (engine.check, engine.add):
            with pytest.raises(UsageError, match=message):
                what(ids, params)
    assert not engine.has_work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be a whole number from 1"),
        ({"max_num_seqs": True}, "max_num_seqs"),
        ({"max_model_len": 2.5}, "max_model_len"),
        ({"kv_cache_memory": -1}, "kv_cache_memory"),
        ({"speculative_tokens": 65}, "speculative_tokens"),
        ({"max_num_seqs": 16, "max_num_batched_tokens": 8}, "at least max_num_seqs"),
        ({"kv_cache_dtype": "int4"}, "one of auto, bfloat16, not 'int4'"),
        ({"enable_prefix_caching": 1}, "true or false"),
    ],
)
def test_an_invalid_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineConfig(**options)


def test_a_configuration_beyond_the_model_or_the_memory_is_refused() -> None:
    with pytest.raises(UsageError, match="exceeds the model's context of 4096"):
        TinyEngine(max_model_len=5000)
    with pytest.raises(UsageError, match="cache of 100 bytes holds 0 tokens"):
        TinyEngine(kv_cache_memory=100)
    with pytest.raises(UsageError, match=r"holds 256 tokens, but one request may have 300.*kv_cache_memory"):
        TinyEngine(pages=2, max_model_len=300)
    assert TinyEngine(pages=2, max_model_len=256).max_model_len == TinyEngine(pages=2).max_model_len == 256
