"""The score of a model for one case of a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaseScore:
    """A score by some metric, for a case of a part of the task.

    Attributes:
        cluster: what makes cases alike, such as their question; errors are computed over clusters.
        higher_is_better: whether a higher score is a better one.
    """

    part: str
    metric: str
    value: float
    cluster: str
    higher_is_better: bool = True
