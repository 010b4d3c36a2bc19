"""Sampling parameters: values outside their range are refused by name."""

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.sampling.sampler import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.nan, math.inf, "1", True, None, 10**400)),
        *(("top_p", value) for value in (0.0, -0.5, 1.1, math.nan, "0.5")),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, math.nan, math.inf, 1000.0)),
        *(("top_k", value) for value in (-2, 1.5, True, 10**40)),
        *(("max_tokens", value) for value in (-1, 1.0, None)),
        *(("seed", value) for value in (1.5, "1", 2**64, -(2**63) - 1, True)),
        *(("logprobs", value) for value in (-1, 21, 1.0, True)),
        *(("stop", value) for value in ("", [""], [1], 5, None, {"a"}, b"x")),
        *(("ignore_eos", value) for value in (1, "no", None)),
        *(
            (name, value)
            for name in ("presence_penalty", "frequency_penalty")
            for value in (-2.1, 2.1, math.nan, "1", None)
        ),
        *(("n", value) for value in (0, 129, 1.0, True, None)),
        *(("min_tokens", value) for value in (-1, 129, 1.0, None)),
        *(("stop_token_ids", value) for value in (5, "5", ["5"], [-1], [True], [1.0], [2**32], None, {5})),
        *(("logit_bias", value) for value in ({"5": 1.0}, {5: 100.1}, {5: math.nan}, {5: "1"}, {-1: 1.0}, {True: 1.0})),
        *(("logit_bias", value) for value in (5, None, [(1, 2.0)], ((1, 2.0), (1, 3.0)), ((1,),), {2**32: 1.0})),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{field} must be .* not "):
        SamplingParams(**{field: value})


def test_a_number_that_python_does_not_print_is_refused() -> None:
    with pytest.raises(UsageError, match="a larger number"):
        SamplingParams(top_k=10**6000)
    with pytest.raises(UsageError, match="a larger number"):
        SamplingParams(logit_bias={5: 10**6000})


def test_too_many_stop_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 1024 tokens"):
        SamplingParams(stop_token_ids=tuple(range(1025)))


@pytest.mark.parametrize("stop", [["x"] * 65, "x" * 1025])
def test_too_many_or_too_long_stop_strings_are_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match="at most 64 strings of 1024"):
        SamplingParams(stop=stop)


def test_values_are_normalised() -> None:
    params = SamplingParams(temperature=1, top_k=-1, stop="END", seed=0)  # type: ignore[arg-type]
    assert isinstance(params.temperature, float)
    assert params.stop == ("END",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert hash(SamplingParams()) == hash(SamplingParams())


def test_mappings_and_lists_cannot_change_afterwards() -> None:
    bias = {7: 1, 3: -2.5}
    params = SamplingParams(logit_bias=bias, stop_token_ids=[4, 2, 4])  # type: ignore[arg-type]
    bias[7] = 5
    assert params.logit_bias == ((3, -2.5), (7, 1.0))
    assert params.stop_token_ids == (4, 2)
    assert replace(params, n=2).logit_bias == params.logit_bias
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(SamplingParams(logit_bias={3: -2.5, 7: 1.0}, stop_token_ids=(4, 2)))
