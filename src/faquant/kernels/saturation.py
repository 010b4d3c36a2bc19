"""Counting what calibrated scales do not reach."""

from collections import Counter


class Saturation:
    """How many values of q, k and v were quantized with calibrated scales, and how many of them were beyond the range.

    Scales per token fit every value, and so count nothing.
    """

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.saturated: Counter[str] = Counter()

    def count(self, name: str, written: int, saturated: int) -> None:
        """Count values of q, k or v, and how many of them were beyond the range."""
        self.written[name] += written
        self.saturated[name] += saturated

    def add(self, other: "Saturation") -> None:
        """Add what another one counted."""
        self.written.update(other.written)
        self.saturated.update(other.saturated)

    def shares(self) -> dict[str, float]:
        """The share of values beyond the range, by tensor; without those that have a scale per token."""
        return {name: self.saturated[name] / written for name, written in sorted(self.written.items()) if written}
