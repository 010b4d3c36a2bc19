"""Traces are deterministic, and the measurements are consistent."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faquant.bench.replay import percentile, replay, trace
from faquant.errors import FaquantError
from oracles.random_decoder import tokens
from oracles.tiny_engine import TinyEngine

TEXTS = [tokens(900, seed=seed).tolist() for seed in range(3)]


@given(
    count=st.integers(1, 40), rate=st.sampled_from([0.0, 3.0]), longest=st.integers(40, 2048), seed=st.integers(0, 9)
)
def test_a_trace_follows_its_arguments(count: int, rate: float, longest: int, seed: int) -> None:
    requests = trace(TEXTS, count, rate, longest, seed)
    assert requests == trace(TEXTS, count, rate, longest, seed)
    assert len(requests) == count
    assert all(earlier.at <= later.at for earlier, later in pairwise(requests))
    assert (requests[-1].at > 0) == (rate > 0)
    assert all(1 <= len(item.prompt) <= longest and 16 <= item.tokens <= 128 for item in requests)


def test_some_prompts_share_a_prefix() -> None:
    beginnings = [item.prompt[:100] for item in trace(TEXTS, 40)]
    assert 3 <= max(map(beginnings.count, beginnings)) <= 20


@pytest.mark.parametrize("rate", [0.0, 20.0])
def test_a_replay_answers_all_requests_and_measures_them(rate: float) -> None:
    requests = trace(TEXTS, 8, rate, longest=300)
    engine = TinyEngine()
    served = replay(engine, requests)
    assert served.tokens == sum(item.tokens for item in requests) == engine.stats().generated_tokens
    assert served.prompt_tokens == sum(len(item.prompt) for item in requests)
    assert len(served.first_token) == len(served.per_token) == 8
    assert 0 < min(served.first_token) <= max(served.first_token) < served.seconds
    assert served.seconds >= requests[-1].at
    assert served.overhead is not None
    assert 0 < served.overhead < 1
    assert not engine.has_work


def test_a_failed_answer_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TinyEngine()
    monkeypatch.setattr(engine._decoder, "logits", lambda hidden: np.full((len(hidden), 50), np.nan, np.float32))
    with pytest.raises(FaquantError, match="unusable logits"):
        replay(engine, trace(TEXTS, 2, longest=300))


def test_percentiles() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile(list(range(101)), 99) == 99
