"""Rows that times do not tell apart: of those that are as fast as the fastest, the one that loses least is named.

Which of them came out first is chance, and so would be what it loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from blockshock.saved import or_inf
from blockshock.saved.pairs import WIDE

UNPAIRED = 0.03
"""Medians of the same thing, each of builds of its own, lie up to that far apart."""
Row = TypeVar("Row")


class Speed(NamedTuple):
    """How fast a row is, how surely, and what it loses.

    Attributes:
        ratio: its time over one that all the rows are set beside.
        loss: None where nothing says it.
        scatter: how far the medians of its builds lie from that of all, as a share; None of a single build.
        interval: of the ratio, where it was paired.
        work: what rows share that run the same kernels over as many numbers; None where that is not known.
    """

    ratio: float
    loss: float | None = None
    scatter: float | None = None
    interval: tuple[float, float] | None = None
    work: object = None


def least_losing(rows: Iterable[Row], speed: Callable[[Row], Speed]) -> Row:
    """Of rows, of which there is one at least, that which loses least of all that are as fast as the fastest; where
    they lose the same, or nothing says what, the fastest of these."""
    told = [(speed(row), row) for row in rows]
    first, _ = min(told, key=lambda one: one[0].ratio)
    alike = [one for one in told if is_alike(one[0], first)]
    return min(alike, key=lambda one: (math.inf if one[0].loss is None else or_inf(one[0].loss), one[0].ratio))[1]


def is_alike(one: Speed, fastest: Speed) -> bool:
    """Whether times do not tell it from the fastest: their intervals meet, if both say something; or the medians lie
    within UNPAIRED or their builds' scatter. Of a single build nothing says how it scatters: there the same work is as
    fast."""
    if one.interval is not None and fastest.interval is not None:
        if all(high <= WIDE * low for low, high in (one.interval, fastest.interval)):
            return one.interval[0] <= fastest.interval[1]
        return one.ratio / fastest.ratio - 1 <= UNPAIRED
    if one.scatter is None and fastest.scatter is None and one.work is not None and one.work == fastest.work:
        return True
    return one.ratio / fastest.ratio - 1 <= max(UNPAIRED, (one.scatter or 0.0) + (fastest.scatter or 0.0))
