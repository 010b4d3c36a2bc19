"""Counting values beyond their calibrated scales."""

from collections import Counter


class Saturation:
    """Counts of the values of q, k and v that were quantized with calibrated scales, and of those beyond the range.

    Scales per token fit every value, so nothing is counted for them.
    """

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.saturated: Counter[str] = Counter()

    def count(self, name: str, written: int, saturated: int) -> None:
        """Add to the counts of q, k or v."""
        self.written[name] += written
        self.saturated[name] += saturated

    def add(self, other: "Saturation") -> None:
        """Add the counts of another one."""
        self.written.update(other.written)
        self.saturated.update(other.saturated)

    def shares(self) -> dict[str, float]:
        """The share of values beyond the range, for each tensor without a scale per token."""
        return {name: self.saturated[name] / written for name, written in sorted(self.written.items()) if written}
