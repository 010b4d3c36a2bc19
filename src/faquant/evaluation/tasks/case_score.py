"""The score of a model for one case of a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaseScore:
    """A score between 0 and 1 by some metric, for a case of a part of the task."""

    part: str
    metric: str
    value: float
