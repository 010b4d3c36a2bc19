"""Tasks of lm-evaluation-harness, scored through the cache."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...errors import UsageError
from .case_score import CaseScore


def check_harness_tasks(names: Sequence[str], include: Path | None) -> None:
    """Check that the harness is there and knows these tasks.

    Raises:
        UsageError: it is not, or does not.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"The tasks {', '.join(names)} are those of lm-evaluation-harness, which cannot be imported ({error}). "
            "Install it: pip install 'faquant[lm-eval]'. The built-in tasks are needle and calls."
        ) from None
    if patterns := [name for name in names if set(name) & set("*?[")]:
        raise UsageError(f"Name each task by its whole name, without patterns, not {patterns[0]!r}.")
    known = TaskManager(include_path=None if include is None else str(include))
    unknown = [name for name in names if not known.match_tasks([name])]
    if unknown:
        raise UsageError(
            f"lm-evaluation-harness has no task {unknown[0]!r}. Its own list: lm_eval ls tasks; a folder with tasks of "
            "your own: --tasks-from FOLDER. The built-in tasks are needle and calls."
        )


def harness_scores(
    directory: Path, names: Sequence[str], include: Path | None, limit: int | None
) -> dict[str, list[CaseScore]]:
    """The score of each document, by task.

    Raises:
        UsageError: a task's data cannot be loaded, or it has no score for each document.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .. import harness as _registers_the_model  # noqa: F401

    try:
        results: Mapping[str, Any] = simple_evaluate(
            model="faquant",
            model_args={"pretrained": str(directory), "batch_size": "auto"},
            tasks=list(names),
            task_manager=TaskManager(include_path=None if include is None else str(include)),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"lm-evaluation-harness cannot run {', '.join(names)}: {error}") from None
    scores = {
        name: document_scores(samples, results["results"][name], results["higher_is_better"][name])
        for name, samples in results["samples"].items()
    }
    without = [name for name, found in scores.items() if not found]
    if without:
        raise UsageError(f"The task {without[0]} has no score for each document, so it cannot be compared.")
    return scores


def document_scores(
    samples: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], higher_is_better: Mapping[str, Any]
) -> list[CaseScore]:
    """The scores of the documents by those metrics whose total is the mean: not by perplexities and the like.

    Args:
        totals: the task's results, by `metric,filter`.
        higher_is_better: by metric.
    """
    scores = []
    for name, values in _by_metric(samples).items():
        total = totals.get(f"{name[0]},{name[1]}")
        if isinstance(total, int | float) and math.isclose(total, fmean(values.values()), rel_tol=1e-9, abs_tol=1e-12):
            metric = name[0] if name[1] == "none" else f"{name[0]}, {name[1]}"
            better = higher_is_better.get(name[0]) is not False
            scores += [CaseScore("", metric, value, str(document), better) for document, value in values.items()]
    return scores


def _by_metric(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """The numbers among the scores, by metric and filter, and by document."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"])):
        for metric in sample["metrics"]:
            if isinstance(sample[metric], bool | int | float):
                found.setdefault((metric, sample["filter"]), {})[sample["doc_id"]] = float(sample[metric])
    return found
