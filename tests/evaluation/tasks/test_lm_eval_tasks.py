"""Tasks of lm-evaluation-harness: which can be compared, and that their scores are the harness's own."""

from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="make test-harness installs it")
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from faquant.errors import UsageError
from faquant.evaluation.tasks.compare import Tasks, check_tasks, compare_tasks

pytestmark = pytest.mark.harness


def test_tasks_beside_the_report(directories: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    wanted = Tasks(("local_choice", "local_answer"), include=tasks, limit=3)
    results = compare_tasks(directories / "default", directories / "float", wanted, {})
    assert {(result.task, result.metric) for result in results} >= {
        ("local_choice", "acc"),
        ("local_answer", "exact_match"),
    }
    assert all(result.cases == 3 and result.difference_error is not None for result in results)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    direct = simple_evaluate(
        "faquant",
        f"pretrained={directories / 'default'}",
        tasks=["local_choice"],
        task_manager=manager,
        limit=3,
        bootstrap_iters=0,
    )
    assert direct is not None
    (accuracy,) = (one.score for one in results if (one.task, one.metric) == ("local_choice", "acc"))
    assert accuracy == direct["results"]["local_choice"]["acc,none"]


@pytest.mark.parametrize(
    ("name", "message"), [("no_such_task", "has no task 'no_such_task'"), ("local_*", "without patterns")]
)
def test_tasks_that_do_not_exist_are_refused(
    directories: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(UsageError, match=message):
        check_tasks(directories / "float", Tasks((name,), include=tasks), {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local_rolling", "no score for each document"),
        ("local_likelihood", "lm-evaluation-harness cannot run local_likelihood|no score for each document"),
    ],
)
def test_tasks_without_scores_of_documents_are_refused(
    directories: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    wanted = Tasks((name,), include=tasks)
    with pytest.raises(UsageError, match=message):
        compare_tasks(directories / "default", directories / "float", wanted, {})
