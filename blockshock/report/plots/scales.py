"""Where values lie in a panel, and the ticks that say so."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from blockshock.report.plots.svg import LETTER, number

LEAST_SPAN = 1.1
"""From the lowest to the highest value of a log axis: a line of equal values is one, and no noise."""


@dataclass(frozen=True)
class Scale:
    """From values to pixels, logarithmic unless ``linear``.

    Attributes:
        low, high: the values at its ends.
        start, end: their pixels.
    """

    low: float
    high: float
    start: float
    end: float
    linear: bool = False

    def __call__(self, value: float) -> float:
        of = _same if self.linear else math.log
        share = (of(value) - of(self.low)) / (of(self.high) - of(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values: of a small range linearly, of others by 1, 2, 5 or so."""
        return round_values(self.low, self.high)


def _same(value: float) -> float:
    return value


def over(values: Iterable[float], start: float, end: float, room: float = 0.08) -> Scale:
    """A log scale of all values, with room at both ends."""
    found = list(values)
    low, high = min(found), max(found)
    if high < low * LEAST_SPAN:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = middle / LEAST_SPAN, middle * LEAST_SPAN
    margin = math.exp(room * (math.log(high) - math.log(low)))
    return Scale(low / margin, high * margin, start, end)


def drawable(value: object) -> bool:
    """Whether a log axis has a place for it."""
    return isinstance(value, (int, float)) and 1e-30 < value < 1e30


def round_values(low: float, high: float) -> list[float]:
    """Ticks from low to high, at most six; from zero on too."""
    if low <= 0 or high / low < 2:
        return _linear(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def _linear(low: float, high: float) -> list[float]:
    wanted = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(wanted))
    step = next(step * size for step in (1, 2, 2.5, 5, 10) if step * size >= wanted)
    return [round(place * step, 12) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def that_fit(
    values: Sequence[float], scale: Callable[[float], float], say: Callable[[float], str] = number
) -> list[tuple[float, str]]:
    """Of sorted values those whose texts do not touch, with their texts: first the last one, then from the left."""
    kept: list[tuple[float, str]] = []
    for value in (values[-1], *values[:-1]):
        words = say(value)
        room = [LETTER * (len(words) + len(other)) / 2 + 6 for _, other in kept]
        if all(abs(scale(value) - scale(place)) >= wide for (place, _), wide in zip(kept, room, strict=True)):
            kept.append((value, words))
    return kept
