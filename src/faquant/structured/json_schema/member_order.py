"""The order of an object's members: each `properties` has one, and schemas in the same place have none in common."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

MOST_MEMBERS = 64  # the bits of llguidance's parameters


@dataclass(frozen=True)
class Order:
    """The names in an order that is right, and the bits (by place) of those that must not come after each; without
    bits, no other order is right."""

    names: tuple[str, ...]
    before: tuple[int, ...]

    @property
    def is_total(self) -> bool:
        """Whether no other order is right."""
        return not self.before or all(self.before[place + 1] >> place & 1 for place in range(len(self.names) - 1))


def order_of(names: Iterable[str], chains: Iterable[tuple[str, ...]]) -> Order:
    """The order of names in which each chain has its own order, as far as it does not contradict those before it.

    Names without a chain come last. More than MOST_MEMBERS names are in their order.
    """
    given = list(dict.fromkeys(names))
    if len(given) > MOST_MEMBERS:
        return Order(tuple(given), ())
    before: dict[str, int] = dict.fromkeys(given, 0)  # bits by place in `given`
    places = {name: place for place, name in enumerate(given)}
    chained: dict[str, None] = {}
    for chain in chains:
        known = [name for name in chain if name in places]
        chained |= dict.fromkeys(known)
        for first, then in pairwise(known):
            _add(before, places, first, then)
    last = [name for name in given if name not in chained]
    for place, name in enumerate(last):
        before[name] |= sum(1 << places[other] for other in (*chained, *last[:place]))
    return _sorted(given, before)


def _add(before: dict[str, int], places: Mapping[str, int], first: str, then: str) -> None:
    if before[first] >> places[then] & 1:
        return
    more = before[first] | 1 << places[first]
    for name in before:
        if name == then or before[name] >> places[then] & 1:
            before[name] |= more


def _sorted(given: list[str], before: Mapping[str, int]) -> Order:
    """The names in an order that is right; of those that may come next, the first one given comes."""
    names: list[str] = []
    left, done = dict(enumerate(given)), 0
    while left:
        place = next(place for place, name in left.items() if not before[name] & ~done)
        names.append(left.pop(place))
        done |= 1 << place
    places = {name: place for place, name in enumerate(names)}
    bits = (sum(1 << places[other] for place, other in enumerate(given) if before[name] >> place & 1) for name in names)
    return Order(tuple(names), tuple(bits))
