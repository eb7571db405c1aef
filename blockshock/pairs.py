"""Is one thing faster than another, and how sure are we? Ratios of medians with bootstrap intervals, and verdicts.

The two are timed in pairs, round by round in random order, so that a drift of the machine's speed meets both alike. The
interval resamples whole rounds (Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7, 1979): it
keeps what the two samples of a round have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
LONGEST = 1e18
"""Seconds that no duration takes: longer than there was time so far."""
MARGIN = 0.01
"""Ratios closer to one than this are no difference that anybody should act on."""

Samples = Sequence[float]


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, and the interval that holds it with a confidence of 95 %."""

    value: float
    low: float
    high: float

    def verdict(self, margin: float = MARGIN) -> str:
        """Of the claim that the first is faster: ``supported``, ``rejected`` or, within the margin, ``undecided``.

        Supported if all of the interval is below 1 - margin, rejected if all of it is above that.
        """
        if self.high < 1 - margin:
            return "supported"
        return "rejected" if self.low > 1 - margin else "undecided"

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out one: the two are not equally fast."""
        return not self.low <= 1 <= self.high


def ratio_of(first: Samples, second: Samples, seed: int = 0) -> Ratio:
    """Median of the first over that of the second; sample i of both is of one round.

    Raises:
        ValueError: there are no samples, not as many of both, or one that no clock can give.
    """
    medians = _medians(first, second, seed)
    return _interval(medians[0] / medians[1], _value(first) / _value(second))


def change_of(before: tuple[Samples, Samples], after: tuple[Samples, Samples], seed: int = 0) -> Ratio:
    """How a ratio changes from one pair to another: that of ``after`` over that of ``before``.

    Raises:
        ValueError: as of ``ratio_of``.
    """
    was, now = _medians(*before, seed), _medians(*after, seed + 1)
    value = _value(after[0]) / _value(after[1]) / (_value(before[0]) / _value(before[1]))
    return _interval((now[0] / now[1]) / (was[0] / was[1]), value)


def _value(samples: Samples) -> float:
    return float(np.median(np.asarray(samples)))


def _medians(first: Samples, second: Samples, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Medians of both over the same resampled rounds."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not len(a) or len(a) != len(b):
        raise ValueError(f"pairs need as many samples of both, and at least one: got {len(a)} and {len(b)}")
    for samples in (a, b):
        unsound = samples[~((samples > 0) & (samples < LONGEST))]
        if len(unsound):
            raise ValueError(f"a duration of {unsound[0]} s: the clock is not sound")
    rounds = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    return np.median(a[rounds], axis=1), np.median(b[rounds], axis=1)


def _interval(ratios: np.ndarray, value: float) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(value, float(low), float(high))
