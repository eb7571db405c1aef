"""Where something holds, in words that a reader can act on: ``from N = 16384 on, at B ≤ 64``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, product
from operator import or_

from blockshock.report.plots.panels import layer

MOST_OF_THEM = 2 / 3
"""Of the points where it holds, at least so many are in a range that is worth naming; and of those in it, at so many it
holds."""
MOST_NAMED = 3
"""Points that are named where no range has them."""


@dataclass(frozen=True)
class Spot:
    """A point, and whether it holds there; None where that is not decided."""

    N: int
    K: int
    B: int
    holds: bool | None


@dataclass(frozen=True)
class _Range:
    """Values of one size from ``low`` to ``high``, or open on a side; ``inside`` has a bit for each spot of these."""

    name: str
    low: int | None
    high: int | None
    inside: int

    @property
    def bounds(self) -> int:
        return 1 if self.low == self.high else (self.low is not None) + (self.high is not None)

    def words(self, first: bool) -> str:
        if self.low == self.high:
            return f"at {self.name} = {self.low}"
        if self.low is None:
            return f"at {self.name} ≤ {self.high}"
        if self.high is None:
            return f"from {self.name} = {self.low} on" if first else f"at {self.name} ≥ {self.low}"
        return f"at {self.name} = {self.low} to {self.high}"


def where(spots: Sequence[Spot]) -> str:
    """Of all points those where it holds: ranges of at most two sizes, if these hold just them, or most and no other.

    A range of two bounds is of one size. Points that are not decided may lie outside, and a few of them in a range. One
    that ends where the points end is open there: what is beyond was not tried. Points in no range are named if they are
    few.
    """
    holds = sum(1 << place for place, spot in enumerate(spots) if spot.holds)
    fails = sum(1 << place for place, spot in enumerate(spots) if spot.holds is False)
    count, of = holds.bit_count(), len(spots)
    if not count:
        return "nowhere"
    if count == of:
        return f"at all {of} points" if of > 1 else "at the one point"
    tried = list(_tried(spots))
    found = [
        (-(holds & inside).bit_count(), sum(one.bounds for one in ranges), inside.bit_count(), number)
        for number, (ranges, inside) in enumerate(tried)
        if not inside & fails and (holds & inside).bit_count() >= MOST_OF_THEM * max(count, inside.bit_count())
    ]
    if not found:
        return f"at {count} of {of} points{_named(spots, holds)}"
    ranges, inside = tried[min(found)[-1]]
    named = ", ".join(one.words(first=not place) for place, one in enumerate(ranges))
    told = f"{named} ({(holds & inside).bit_count()} of {of} points)"
    others = holds & ~inside
    if not others:
        return told
    return f"{told} and at {others.bit_count()} of the other {of - inside.bit_count()}{_named(spots, others)}"


def _named(spots: Sequence[Spot], which: int) -> str:
    """Those points, by layer, if they are few; nothing where it does not hold at one of them for another workload."""
    found = [spot for place, spot in enumerate(spots) if which >> place & 1]
    others = {(spot.N, spot.K, spot.B) for spot in spots if not spot.holds}
    if len(found) > MOST_NAMED or any((spot.N, spot.K, spot.B) in others for spot in found):
        return ""
    return f" ({named((spot.N, spot.K, spot.B) for spot in found)})"


def named(points: Iterable[tuple[int, int, int]]) -> str:
    """Points (N, K, B), each once, by layer: ``4096², B = 16 and 64; 8192², B = 16``."""
    layers: dict[tuple[int, int], list[str]] = defaultdict(list)
    for N, K, B in sorted(set(points), key=lambda point: (point[0] * point[1], *point)):
        layers[N, K].append(str(B))
    return "; ".join(f"{layer(N, K)}, B = {' and '.join(Bs)}" for (N, K), Bs in layers.items())


def _tried(spots: Sequence[Spot]) -> Iterator[tuple[tuple[_Range, ...], int]]:
    """All ranges of one size, and of two sizes where each has one bound; and the spots inside."""
    sizes = ("N", "K", "B") if any(spot.N != spot.K for spot in spots) else ("N", "B")
    ranges = {name: list(_ranges(spots, name)) for name in sizes}
    yield from (((one,), one.inside) for name in sizes for one in ranges[name])
    for names in combinations(sizes, 2):
        first, second = ([one for one in ranges[name] if one.bounds == 1] for name in names)
        yield from ((both, both[0].inside & both[1].inside) for both in product(first, second))


def _ranges(spots: Sequence[Spot], name: str) -> Iterator[_Range]:
    """All ranges of a size; those that end at the smallest or the largest value are open there."""
    values = sorted({getattr(spot, name) for spot in spots})
    have = [sum(1 << place for place, spot in enumerate(spots) if getattr(spot, name) == value) for value in values]
    up_to = list(accumulate(have, or_, initial=0))
    for low, high in combinations(range(len(values) + 1), 2):
        inside = up_to[high] & ~up_to[low]
        if high - low == 1:
            yield _Range(name, values[low], values[low], inside)
        elif high - low < len(values):
            yield _Range(name, values[low] if low else None, values[high - 1] if high < len(values) else None, inside)
