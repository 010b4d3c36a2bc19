"""Runs tasks with the float and the quantized model, and compares the scores case by case."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...checkpoint.model_config import load_config
from ...engine.llm import LLM
from ...errors import UsageError
from ...kernels.device import Device
from .calls import call_scores, check_calls
from .case_score import CaseScore
from .lm_eval_tasks import check_harness_tasks, harness_scores
from .needles import check_needles, needle_scores

BUILT_IN = ("needle", "calls")


@dataclass(frozen=True)
class TaskResult:
    """The mean scores of the float and the quantized model for the same cases; `part` is empty for all of a task.

    difference_error: the standard error of the difference of the means, over clusters of cases that are alike; None for
    one cluster.
    """

    task: str
    part: str
    metric: str
    cases: int
    score_float: float
    score: float
    difference_error: float | None
    higher_is_better: bool = True

    @property
    def difference(self) -> float:
        """Of the quantized model's score from the float model's."""
        return self.score - self.score_float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "difference": self.difference}


@dataclass(frozen=True)
class Tasks:
    """Which tasks to run.

    Attributes:
        names: `needle`, `calls`, or tasks of lm-evaluation-harness.
        include: a folder with further tasks for the harness.
        limit: the number of documents of a task of the harness, of questions about each function, and of needles of
            each length and depth; None: all.
    """

    names: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None

    @property
    def of_harness(self) -> tuple[str, ...]:
        """Those that are not built in."""
        return tuple(name for name in self.names if name not in BUILT_IN)


def check_tasks(against: Path, tasks: Tasks, texts: Mapping[str, str], device: Device = "cpu") -> None:
    """Check before the long work that the tasks can be run with the float model `against`.

    Raises:
        UsageError: a task does not exist, is named twice, or does not fit the model, the texts or the device.
        UnsupportedError: the model has no chat template, or an unknown format of calls.
    """
    if not tasks.names or len(set(tasks.names)) != len(tasks.names):
        raise UsageError(f"Name each task once, not {', '.join(tasks.names) or 'none'}.")
    if tasks.limit is not None and tasks.limit < 1:
        raise UsageError(f"The limit of cases must be at least 1, not {tasks.limit}.")
    if tasks.of_harness:
        if device == "cuda":
            raise UsageError(f"The tasks {', '.join(tasks.of_harness)} run on the CPU only. Use --device cpu.")
        check_harness_tasks(tasks.of_harness, tasks.include)
    if "needle" in tasks.names:
        check_needles(load_config(against).max_position, texts)
    if "calls" in tasks.names:
        check_calls(against)


def compare_tasks(
    directory: Path,
    against: Path,
    tasks: Tasks,
    texts: Mapping[str, str],
    device: Device = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaskResult]:
    """Run the tasks with the float model `against` and with `directory`, one after the other.

    Args:
        tasks: those that check_tasks has accepted.
        texts: what needles are hidden in.
        progress: called with (models done, 2).

    Raises:
        UsageError, CheckpointError, UnsupportedError: a task or a model cannot be used.
    """
    found = []
    for done, each in enumerate((against, directory)):
        progress(done, 2)
        found.append(_scores(each, tasks, texts, device))
    progress(2, 2)
    before, after = found
    return [result for name in before for result in results_of(name, before[name], after[name])]


def _scores(directory: Path, tasks: Tasks, texts: Mapping[str, str], device: Device) -> dict[str, list[CaseScore]]:
    scores = {}
    built_in = [name for name in tasks.names if name in BUILT_IN]
    if built_in:
        llm = LLM(directory, device=device)
        for name in built_in:
            scores[name] = call_scores(llm, tasks.limit) if name == "calls" else needle_scores(llm, texts, tasks.limit)
        del llm
        gc.collect()  # its parts refer to one another, and the next model needs the memory
    if tasks.of_harness:
        scores |= harness_scores(directory, tasks.of_harness, tasks.include, tasks.limit)
        gc.collect()
    return scores


def results_of(task: str, before: Sequence[CaseScore], after: Sequence[CaseScore]) -> list[TaskResult]:
    """The results of a task for all cases and for each part, from the float and the quantized model's scores."""
    pairs: dict[tuple[str, str], list[tuple[CaseScore, CaseScore]]] = {}
    for one, other in zip(before, after, strict=True):
        if (one.part, one.metric, one.cluster) != (other.part, other.metric, other.cluster):
            raise ValueError(f"the models have scores for different cases: {one}, {other}")
        for part in dict.fromkeys(("", one.part)):
            pairs.setdefault((part, one.metric), []).append((one, other))
    order = sorted(pairs, key=lambda key: key[0] != "")
    return [_result(task, *key, pairs[key]) for key in order]


def _result(task: str, part: str, metric: str, pairs: Sequence[tuple[CaseScore, CaseScore]]) -> TaskResult:
    score_float, score = (fmean(pair[place].value for pair in pairs) for place in (0, 1))
    deviations: dict[str, float] = {}
    for one, other in pairs:
        deviation = other.value - one.value - (score - score_float)
        deviations[one.cluster] = deviations.get(one.cluster, 0.0) + deviation
    clusters, error = len(deviations), None
    if clusters > 1:
        scatter = sum(deviation**2 for deviation in deviations.values())
        error = math.sqrt(scatter * clusters / (clusters - 1)) / len(pairs)
    return TaskResult(task, part, metric, len(pairs), score_float, score, error, pairs[0][0].higher_is_better)
