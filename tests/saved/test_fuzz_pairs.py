"""Ratios over blocks, how many blocks they take, and verdicts: of any times that a clock or a file may hold."""

from __future__ import annotations

import math
import statistics

import pytest
from fuzzing import attempt, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import SPECIAL, numbers, times

from blockshock.saved.pairs import Ratio, blocks_needed, change_of_blocks, half_gained, ratio_of_blocks, ratio_of_pairs

pytestmark = pytest.mark.reliability

any_times = st.lists(st.floats() | st.sampled_from(SPECIAL) | st.floats(1e-9, 1e3), max_size=6)


def is_time(seconds: float) -> bool:
    return 0 < seconds < 1e18


@examples(430)
@given(
    first=st.lists(times, max_size=5), second=st.lists(times, max_size=5), odd=any_times, place=st.integers(0, 9),
    pilot=st.integers(-1, 6),
)  # fmt: skip
def test_ratios_are_over_blocks_or_refused(
    first: list[list[float]], second: list[list[float]], odd: list[float], place: int, pilot: int
) -> None:
    if first and place < 5:
        first[place % len(first)] = odd
    found = attempt(ratio_of_blocks, first, second)
    sound = all(block and all(map(is_time, block)) for block in [*first, *second])
    assert (found is not None) == (len(first) == len(second) > 1 and sound)
    assert (attempt(blocks_needed, first, second) is not None) == (found is not None)
    piloted = attempt(ratio_of_blocks, first, second, pilot)
    assert (piloted is not None) == (found is not None and 2 <= pilot <= len(first))
    if found is None:
        return
    logs = [math.log(statistics.median(a)) - math.log(statistics.median(b)) for a, b in zip(first, second, strict=True)]
    assert math.log(found.value) == pytest.approx(statistics.mean(logs), abs=1e-9)
    assert 0 < found.low <= found.value <= found.high < math.inf
    assert found.differs == (not found.low <= 1 <= found.high)
    assert piloted is None or piloted.value == found.value
    again = change_of_blocks((first, second), (first, second))
    assert again.value == pytest.approx(1.0)
    assert attempt(change_of_blocks, (first, second), (first, [])) is None
    pair = {"first": first, "second": second, "pilot": len(first)}
    gained = half_gained((first, second), (second, first))
    assert 0 < gained.low <= gained.value <= gained.high < math.inf
    assert ratio_of_pairs({"network": pair, "linears": pair | {"first": second, "second": first}}) == gained
    assert attempt(half_gained, (first, second), (first[1:], second[1:])) is None
    assert ratio_of_pairs({"forward": pair}) == ratio_of_pairs({"training": pair}) == found
    assert ratio_of_pairs({"forward": pair, "training": pair}) == again
    assert attempt(ratio_of_pairs, {}) is None


@examples(120)
@given(blocks=st.lists(st.tuples(st.floats(1e-6, 1e-2), st.floats(0.9, 1.1)), min_size=2, max_size=12))
def test_as_many_blocks_are_needed_as_make_the_interval_narrow(blocks: list[tuple[float, float]]) -> None:
    first, second = [[seconds * ratio] for seconds, ratio in blocks], [[seconds] for seconds, _ in blocks]
    needed, found = blocks_needed(first, second), ratio_of_blocks(first, second)
    assert needed >= len(blocks)
    half = math.log(found.high / found.value)
    if half <= 0.005 or abs(math.log(found.value)) > 0.01 + 3.001 * half:
        assert needed == len(blocks), "narrow as it is, or beyond doubt"
    if needed > len(blocks):
        assert half > 0.005
        assert half * math.sqrt(len(blocks) / needed) <= 0.015 * (1 + 1e-9)


@examples(250)
@given(low=st.floats(1e-6, 1e6), wide=st.floats(0, 10), margin=st.floats(0, 0.5))
def test_a_verdict_is_about_the_whole_interval(low: float, wide: float, margin: float) -> None:
    high = low * (1 + wide)
    verdict = Ratio((low + high) / 2, low, high).verdict(margin)
    assert (verdict == "faster") == (high < 1 - margin)
    assert (verdict == "slower") == (low > 1 + margin)
    assert (verdict == "tie") == (1 - margin <= low and high <= 1 + margin)


@examples(120)
@given(value=numbers, margin=numbers)
def test_a_verdict_of_any_numbers_is_one_of_four(value: float, margin: float) -> None:
    if abs(margin) < 1e300:
        assert Ratio(value, value, value).verdict(margin) in ("faster", "slower", "tie", "undecided")
