"""Tasks of lm-evaluation-harness, scored through the cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .case_score import CaseScore


def check_tasks(names: Sequence[str], include: Path | None) -> None:
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
    except (OSError, ValueError) as error:
        raise UsageError(f"The data of {', '.join(names)} cannot be loaded: {error}") from None
    scores = {name: list(document_scores(samples)) for name, samples in results["samples"].items()}
    without = [name for name, found in scores.items() if not found]
    if without:
        raise UsageError(f"The task {without[0]} has no score for each document, so it cannot be compared.")
    return scores


def document_scores(samples: Sequence[Mapping[str, Any]]) -> list[CaseScore]:
    """The numbers among the metrics of each sample. A metric of a whole corpus, such as a perplexity, has none."""
    return [
        CaseScore("", metric if sample["filter"] == "none" else f"{metric}, {sample['filter']}", float(sample[metric]))
        for sample in sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"]))
        for metric in sample["metrics"]
        if isinstance(sample[metric], bool | int | float)
    ]
