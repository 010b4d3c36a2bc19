"""The task `needle`: where the number stands, and when it counts as found."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from faquant.errors import UsageError
from faquant.evaluation.needle import haystack
from faquant.evaluation.tasks.needles import check_needles, lengths, needle_scores

FILLER = "Grain, sacks and scales. " * 400


def encode(text: str, add_special_tokens: bool = False) -> list[int]:
    return list(text.encode())


class Reader:
    """A model that finds a number if it stands in the last `sight` tokens of the prompt."""

    def __init__(self, sight: int) -> None:
        self.sight = sight
        self.tokenizer = SimpleNamespace(encode=encode)
        self.model = SimpleNamespace(max_position=2048)

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        seen = [bytes(prompt[-self.sight :]).decode() for prompt in prompts]
        assert all(one.max_tokens == len(" 12345") and one.temperature == 0 for one in params)
        numbers = ["".join(sign for sign in text if sign.isdigit()) for text in seen]
        return [SimpleNamespace(token_ids=tuple(encode(f" {number}"))) for number in numbers]


def test_a_prompt_has_the_length_and_the_number_its_depth() -> None:
    for depth in (0, 0.5, 1):
        prompt, answer = haystack(encode, encode(FILLER), 600, depth, 12345)
        assert len(prompt) + len(answer) == 600
        text = bytes(prompt).decode()
        assert text.count("12345") == 1
        assert text.index("12345") / 600 == pytest.approx(depth * 0.85, abs=0.09)


@pytest.mark.parametrize(("sight", "share"), [(4096, 1), (1, 0)])
def test_all_or_none_are_found(sight: int, share: float) -> None:
    scores = needle_scores(Reader(sight), {"text": FILLER}, None)  # type: ignore[arg-type]
    assert {score.value for score in scores} == {share}
    assert len(scores) == 2 * 5 * 2


def test_depths_are_told_apart() -> None:
    scores = needle_scores(Reader(1000), {"text": FILLER}, 1)  # type: ignore[arg-type]
    found = {score.part: score.value for score in scores}
    assert found["2,048 tokens, depth 0 %"] == 0
    assert found["2,048 tokens, depth 100 %"] == 1
    assert all(value for part, value in found.items() if part.startswith("512"))


def test_lengths_end_at_the_context() -> None:
    assert list(lengths(511)) == []
    assert list(lengths(8191)) == [512, 2048]
    assert list(lengths(1 << 20)) == [512, 2048, 8192]


def test_what_cannot_hide_a_needle_is_refused() -> None:
    with pytest.raises(UsageError, match="512 tokens; this model has 256"):
        check_needles(256, {"text": FILLER})
    with pytest.raises(UsageError, match="no text"):
        check_needles(2048, {"text": " "})
