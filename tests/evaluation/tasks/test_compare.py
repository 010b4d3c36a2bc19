"""Scores of two models are compared case by case, with the standard error of the difference."""

import math
from pathlib import Path

import pytest
import torch

from faquant.errors import UsageError
from faquant.evaluation.measure import evaluate
from faquant.evaluation.tasks.case_score import CaseScore
from faquant.evaluation.tasks.compare import Tasks, check_tasks, compare_tasks, results_of
from faquant.evaluation.tasks.needles import DEPTHS
from faquant.quantization.pipeline import quantize
from faquant.recipe import RECIPES
from oracles.tiny_models import tiny_model
from oracles.tiny_tokenizer import VOCAB_SIZE, write_tokenizer


def scores(part: str, *values: float, clusters: str = "abcd") -> list[CaseScore]:
    return [CaseScore(part, "right", value, cluster) for value, cluster in zip(values, clusters, strict=False)]


def test_the_error_is_that_of_the_paired_differences() -> None:
    before, after = scores("", 1, 1, 0, 1), scores("", 1, 0, 0, 0)
    (result,) = results_of("calls", before, after)
    assert (result.score_float, result.score, result.difference, result.cases) == (0.75, 0.25, -0.5, 4)
    assert result.difference_error == pytest.approx(math.sqrt((2 * 0.25 + 2 * 0.25) / 3 / 4))


def test_cases_that_are_alike_count_as_one() -> None:
    """Twice the same cases have the error of the cases themselves."""
    (once,) = results_of("calls", scores("", 1, 1, 0, 1), scores("", 1, 0, 0, 0))
    twice_before, twice_after = scores("", 1, 1, 0, 1) * 2, scores("", 1, 0, 0, 0) * 2
    (twice,) = results_of("calls", twice_before, twice_after)
    assert twice.cases == 8
    assert twice.difference_error == pytest.approx(once.difference_error)


def test_equal_scores_have_a_difference_without_error() -> None:
    (result,) = results_of("calls", scores("", 1, 0), scores("", 1, 0))
    assert (result.difference, result.difference_error) == (0, 0)


def test_one_cluster_has_no_error() -> None:
    (result,) = results_of("calls", scores("", 1, 0, clusters="aa"), scores("", 0, 0, clusters="aa"))
    assert result.difference_error is None


def test_parts_follow_the_whole() -> None:
    both = scores("a", 1, 1) + scores("b", 0)
    results = results_of("calls", both, both)
    found = [(result.part, result.cases, result.score) for result in results]
    assert found == [("", 3, 2 / 3), ("a", 2, 1), ("b", 1, 0)]


def test_scores_of_different_cases_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different cases"):
        results_of("calls", scores("a", 1), scores("b", 1))


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    tiny_model("smollm", tmp_path, vocab_size=VOCAB_SIZE, max_position_embeddings=256)
    write_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="calls needs a context of"):
        check_tasks(tmp_path, Tasks(("calls",)), {"text": "Grain."})
    with pytest.raises(UsageError, match="needle needs a context of 512 tokens; this model has 256"):
        check_tasks(tmp_path, Tasks(("needle",)), {"text": "Grain."})
    with pytest.raises(UsageError, match="run on the CPU only"):
        check_tasks(tmp_path, Tasks(("gsm8k",)), {}, "cuda")


def test_a_wrong_float_model_is_refused_before_the_tasks(tmp_path: Path) -> None:
    for name, seed in (("float", 0), ("other", 1)):
        tiny_model("smollm", tmp_path / name, vocab_size=VOCAB_SIZE, max_position_embeddings=4096, seed=seed)
        write_tokenizer(tmp_path / name)
    quantize(tmp_path / "float", tmp_path / "int8", RECIPES["default"], [[1, 2, 3]])
    seen: list[tuple[int, int]] = []
    with pytest.raises(UsageError, match="was not made from"):
        evaluate(
            tmp_path / "int8",
            tmp_path / "other",
            {"text": "Grain, sacks and scales."},
            tasks=Tasks(("needle",)),
            task_progress=lambda *step: seen.append(step),
        )
    assert seen == []


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
        check_tasks(Path("model"), tasks, {})


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
    calls = {(result.part, result.metric): result.cases for result in results if result.task == "calls"}
    assert calls == {
        ("", "right call"): 16,
        ("", "no call"): 8,
        ("one function", "right call"): 8,
        ("4 functions", "right call"): 8,
        ("no function fits", "no call"): 8,
    }
    assert all(0 <= result.score <= 1 and 0 <= result.score_float <= 1 for result in results)
