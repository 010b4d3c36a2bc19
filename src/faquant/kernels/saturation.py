"""Counting what calibrated scales do not reach."""

from collections import Counter

from torch import Tensor

_LOW, _HIGH = -128.5, 127.5


class Saturation:
    """How many values of q, k and v were quantized with calibrated scales, and how many of them were beyond the range.

    Scales per token fit every value, and so count nothing.
    """

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self.saturated: Counter[str] = Counter()

    def count(self, name: str, steps: Tensor) -> None:
        """Count values of q, k or v in steps of their scale, with the zero point in."""
        self.written[name] += steps.numel()
        if steps.numel() == 0:
            return
        low, high = (end.item() for end in steps.aminmax())
        if low < _LOW or high > _HIGH:
            self.saturated[name] += int(((steps < _LOW) | (steps > _HIGH)).sum())

    def add(self, other: "Saturation") -> None:
        """Add what another one counted."""
        self.written.update(other.written)
        self.saturated.update(other.saturated)

    def shares(self) -> dict[str, float]:
        """The share of values beyond the range, by tensor; without those that have a scale per token."""
        return {name: self.saturated[name] / written for name, written in sorted(self.written.items()) if written}
