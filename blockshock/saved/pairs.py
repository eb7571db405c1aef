"""Is one thing faster than another, and how sure are we? Ratios over blocks, their intervals, and verdicts.

A block is both things built and captured anew, then timed in rounds that alternate. An interval rests on blocks: all
rounds of one build share where its memory lies and how its graph was laid out, which on GPUs is a few per cent of a
short call and less of a long one. Rounds of one build, however many, cannot see that: on GPUs they told a method from
itself in most tries. Of each block counts the logarithm of the ratio of its two medians; the interval is
Student's ("The probable error of a mean", Biometrika 6, 1908) over these.

How many blocks that takes, ten of them tell: a pilot. The rest is Stein's two-stage procedure ("A two-sample test for a
linear hypothesis whose power is independent of the variance", Ann. Math. Statist. 16, 1945): the scatter is that of the
pilot, however many blocks follow, and so the interval holds the truth as often as it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

CONFIDENCE = 0.95
LONGEST = 1e18
"""Seconds that no duration takes: longer than there was time so far."""
MARGIN = 0.01
"""Ratios closer to one than this are no difference that anybody should act on."""
LARGEST_LOG = 700.0
LONG_CALL = 100e-6
"""Seconds from which a call scatters so little from build to build that differences of 1 % are looked for."""
PRECISION = {"long": 0.005, "short": 0.015}
"""What an interval should be at most to either side: half of the difference that it is to find, 1 % or 3 %."""
BEYOND_DOUBT = 3
"""How many of its own half widths an interval lies beyond the margin where it need not be narrower."""
WIDE = 1.5
"""An interval whose ends are a larger factor apart says that something was wrong with the measurement."""

Blocks = Sequence[Sequence[float]]
"""Seconds of each round, by block."""
Pair = tuple[Blocks, Blocks] | tuple[Blocks, Blocks, int]
"""Blocks of the first and of the second, and how many of them are the pilot: all, unless it is said."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of times, and the interval that holds it with a confidence of 95 %."""

    value: float
    low: float
    high: float

    def verdict(self, margin: float = MARGIN) -> str:
        """What the first is beside the second: ``faster``, ``slower``, a ``tie``, or ``undecided``.

        Faster or slower if all of the interval is farther from one than the margin, a tie if none of it is.
        """
        if self.high < 1 - margin:
            return "faster"
        if self.low > 1 + margin:
            return "slower"
        return "tie" if self.low >= 1 - margin and self.high <= 1 + margin else "undecided"

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out one: the two are not equally fast."""
        return not self.low <= 1 <= self.high

    @property
    def wide(self) -> bool:
        """Whether the ends of the interval are more than a factor of 1.5 apart."""
        return self.high > WIDE * self.low


def ratio_of_blocks(first: Blocks, second: Blocks, pilot: int | None = None) -> Ratio:
    """Time of the first over that of the second; block i of both was timed in turn.

    Args:
        pilot: how many of the blocks, the first ones, tell the scatter; None for all.

    Raises:
        ValueError: fewer than two blocks in all or in the pilot, not as many of both, an empty one, or a duration that
            no clock can give.
    """
    mean, variance, freedom = _log_ratio(first, second, pilot)
    return _interval(mean, variance, freedom)


def blocks_needed(first: Blocks, second: Blocks) -> int:
    """How many blocks in all make the interval as narrow as PRECISION, judged by a pilot of them.

    As many as there are, where the pilot's difference is beyond doubt.

    Raises:
        ValueError: as of ``ratio_of_blocks``.
    """
    mean, variance, freedom = _log_ratio(first, second)
    half = quantile(freedom) * math.sqrt(variance)
    seconds = min(_median([_median(block) for block in blocks]) for blocks in (first, second))
    wanted = PRECISION["long" if seconds >= LONG_CALL else "short"]
    if abs(mean) > MARGIN + BEYOND_DOUBT * half:
        return len(first)
    return max(len(first), math.ceil(len(first) * (half / wanted) ** 2))


def change_of_blocks(before: Pair, after: Pair) -> Ratio:
    """How a ratio changes from one pair to another: that of ``after`` over that of ``before``.

    The two pairs were measured one after the other and may scatter differently (Welch, Biometrika 34, 1947).

    Raises:
        ValueError: as of ``ratio_of_blocks``.
    """
    (was, was_variance, was_freedom), (now, now_variance, now_freedom) = _log_ratio(*before), _log_ratio(*after)
    variance = was_variance + now_variance
    spread = was_variance**2 / was_freedom + now_variance**2 / now_freedom
    freedom = variance**2 / spread if spread else was_freedom + now_freedom
    return _interval(now - was, variance, max(int(freedom), 1))


def half_gained(network: Pair, linears: Pair) -> Ratio:
    """The time of a pass over that of one which gained half of what its layers gain, from the same blocks of both.

    With T and L the times of a pass and of its linear layers alone, of a row and of the dense network, layers gain
    g = L_dense ÷ L_row − 1, and a pass that gained half of it would take T_dense ÷ (1 + g ÷ 2). Below one, T_dense ÷
    T_row − 1 is more than g ÷ 2. Layers that are slower gain nothing, g = 0: half of a loss is no gain.

    Raises:
        ValueError: as of ``ratio_of_blocks``, or not as many blocks of both, or of their pilots.
    """
    whole, pilot = _logs(*network)
    layers, other = _logs(*linears)
    if (len(whole), pilot) != (len(layers), other):
        raise ValueError(f"a network and its linears are timed in the same blocks, got {len(whole)} and {len(layers)}")
    halves = [math.log1p((max(math.exp(min(-log, LARGEST_LOG)), 1.0) - 1) / 2) for log in layers]
    return _interval(*_mean([log + half for log, half in zip(whole, halves, strict=True)], pilot))


def ratio_of_pairs(pairs: Mapping[str, Mapping[str, Any]]) -> Ratio:
    """What a verdict rests on, out of its saved ``blocks``: by pass, blocks of the ``first`` and of the ``second``,
    and how many are the ``pilot``.

    Of one pass the ratio of its pair; of ``forward`` and ``training`` how it changes from a training step to a forward
    pass; of ``network`` and ``linears`` what ``half_gained`` says.

    Raises:
        ValueError: as of ``ratio_of_blocks``, or there are no such passes.
    """
    found = {name: (pair["first"], pair["second"], pair["pilot"]) for name, pair in pairs.items()}
    if found.keys() == {"forward", "training"}:
        return change_of_blocks(before=found["training"], after=found["forward"])
    if found.keys() == {"network", "linears"}:
        return half_gained(found["network"], found["linears"])
    if len(found) != 1:
        raise ValueError(
            "a verdict is about forward, training or both, or a network and its linears, not about "
            f"{', '.join(found) or 'nothing'}"
        )
    return ratio_of_blocks(*next(iter(found.values())))


def _log_ratio(first: Blocks, second: Blocks, pilot: int | None = None) -> tuple[float, float, int]:
    """Mean over the blocks of the logarithm of the ratio of medians, the variance of that mean, degrees of freedom."""
    return _mean(*_logs(first, second, pilot))


def _logs(first: Blocks, second: Blocks, pilot: int | None = None) -> tuple[list[float], int]:
    """Of each block the logarithm of the ratio of the two medians; and how many are the pilot."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"an interval takes as many blocks of both, and two or more: got {len(first)}, {len(second)}")
    pilot = len(first) if pilot is None else pilot
    if not 2 <= pilot <= len(first):
        raise ValueError(f"a pilot is two or more of the blocks: got {pilot} of {len(first)}")
    return [math.log(_median(a)) - math.log(_median(b)) for a, b in zip(first, second, strict=True)], pilot


def _mean(logs: Sequence[float], pilot: int) -> tuple[float, float, int]:
    return float(np.mean(logs)), float(np.var(logs[:pilot], ddof=1)) / len(logs), pilot - 1


def _median(samples: Sequence[float]) -> float:
    times = np.asarray(samples, dtype=float)
    unsound = times[~((times > 0) & (times < LONGEST))]
    if len(unsound):
        raise ValueError(f"a duration of {unsound[0]} s: the clock is not sound")
    if not len(times):
        raise ValueError("a block without a round")
    return float(np.median(times))


def _interval(mean: float, variance: float, freedom: int) -> Ratio:
    half = quantile(freedom) * math.sqrt(variance)
    return Ratio(_exp(mean), _exp(mean - half), _exp(mean + half))


def _exp(value: float) -> float:
    """Within what a float holds: blocks may scatter so that an end of an interval is beyond that."""
    return math.exp(min(max(value, -LARGEST_LOG), LARGEST_LOG))


@cache
def quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a mean lies from the truth at most, with this confidence: Student's t, two-sided."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that Student's t is at most so large (Abramowitz and Stegun, 26.7.3 and 26.7.4: a finite sum)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine, odd = math.sin(angle), math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
