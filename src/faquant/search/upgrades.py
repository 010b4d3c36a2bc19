"""Which linears get 16-bit inputs or stay float, to lose less for the least time."""

from collections.abc import Mapping
from dataclasses import dataclass

from .costs import Kind

Group = tuple[str, ...]
"""Linears with the same input, by their checkpoint names."""
_LEAST_COST = 1e-6
"""Timings are noisy; nothing is free."""


@dataclass(frozen=True)
class Upgrade:
    """A group that gets a better kind, with the loss that this removes (KL in nats) and what it costs (Costs.added)."""

    group: Group
    kind: Kind
    gain: float
    cost: float

    @property
    def rate(self) -> float:
        """Loss removed for its cost."""
        return self.gain / self.cost


def upgrades(
    narrow: Mapping[Group, float], wide: Mapping[Group, float], costs: Mapping[Group, Mapping[Kind, float]]
) -> list[Upgrade]:
    """All upgrades worth making, the best rates first; a group may get 16-bit inputs first, and be left float later.

    Args:
        narrow, wide: the loss of each group alone, with inputs of 8 and of 16 bits.
        costs: what each group costs more with 16-bit inputs, and as floats.
    """
    found = []
    for group, loss in narrow.items():
        left = min(wide[group], loss)
        to_wide, to_float = (max(costs[group][kind], _LEAST_COST) for kind in ("wide", "float"))
        at_once = Upgrade(group, "float", loss, to_float)
        first = Upgrade(group, "wide", loss - left, to_wide)
        then = Upgrade(group, "float", left, max(to_float - to_wide, _LEAST_COST))
        # The second step must not be better than the first, or both are one.
        found += [first, then] if first.rate > at_once.rate else [at_once]
    worth = [upgrade for upgrade in found if upgrade.gain > 0]
    return sorted(worth, key=lambda upgrade: (-upgrade.rate, upgrade.kind != "wide"))
