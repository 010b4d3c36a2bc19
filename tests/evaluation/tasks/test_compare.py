"""Scores of two models are compared case by case, with the standard error of the difference."""

import math
from pathlib import Path

import pytest
import torch

from faquant.errors import UsageError
from faquant.evaluation.tasks.case_score import CaseScore
from faquant.evaluation.tasks.compare import Tasks, compare_tasks, results_of
from faquant.evaluation.tasks.needles import DEPTHS
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer


def scores(part: str, *values: float) -> list[CaseScore]:
    return [CaseScore(part, "right", value) for value in values]


def test_the_error_is_that_of_the_paired_differences() -> None:
    before, after = scores("", 1, 1, 0, 1), scores("", 1, 0, 0, 0)
    (result,) = results_of("calls", before, after)
    assert (result.score_float, result.score, result.difference, result.cases) == (0.75, 0.25, -0.5, 4)
    assert result.difference_error == pytest.approx(math.sqrt((2 * 0.25 + 2 * 0.25) / 3 / 4))


def test_equal_scores_have_a_difference_without_error() -> None:
    (result,) = results_of("calls", scores("", 1, 0), scores("", 1, 0))
    assert (result.difference, result.difference_error) == (0, 0)


def test_one_case_has_no_error() -> None:
    (result,) = results_of("calls", scores("", 1), scores("", 0))
    assert result.difference_error is None


def test_parts_follow_the_whole() -> None:
    both = scores("a", 1, 1) + scores("b", 0)
    results = results_of("calls", both, both)
    assert [(result.part, result.cases, result.score) for result in results] == [
        ("", 3, 2 / 3),
        ("a", 2, 1),
        ("b", 1, 0),
    ]


def test_scores_of_different_cases_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different cases"):
        results_of("calls", scores("a", 1), scores("b", 1))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (Tasks(()), "Name each task once, not none"),
        (Tasks(("calls", "calls")), "Name each task once"),
        (Tasks(("calls",), limit=0), "at least 1"),
    ],
)
def test_wrong_tasks_are_refused(tasks: Tasks, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tasks.check()


def test_both_models_work_on_the_same_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faquant.evaluation.tasks.calls.MAX_TOKENS", 128)
    monkeypatch.setattr("faquant.evaluation.tasks.needles.LONGEST", 512)
    tiny_model("smollm", tmp_path / "float", vocab_size=VOCAB_SIZE, max_position_embeddings=4096)
    write_tokenizer(tmp_path / "float")
    ids = torch.randint(0, 256, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    quantize(tmp_path / "float", tmp_path / "int8", RECIPES["default"], [ids])
    done = []
    results = compare_tasks(
        tmp_path / "int8",
        tmp_path / "float",
        Tasks(("needle", "calls"), limit=1),
        {"text": "Grain, sacks and scales. " * 40},
        progress=lambda *step: done.append(step),
    )
    assert done == [(0, 2), (1, 2), (2, 2)]
    whole = {result.task: result for result in results if not result.part}
    assert whole["needle"].cases == len(DEPTHS)
    parts = {result.part for result in results if result.task == "needle"}
    assert parts == {"", *(f"512 tokens, depth {depth} %" for depth in DEPTHS)}
    assert whole["calls"].cases == 3 * 8
    assert all(0 <= result.score <= 1 and 0 <= result.score_float <= 1 for result in results)
