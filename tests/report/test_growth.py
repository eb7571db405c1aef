"""How time grows with the sizes: exponents that are known are found, and none is made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from rows import Info, run_of, timed

from blockshock.report.growth import growth
from blockshock.report.run_tables import run_tables

OURS = "block_shock gathered 1100"
SIZES, TOKENS = (64, 128, 256, 512), (1, 16, 64, 1024)


def _rows(time: Callable[[int, int], float], sizes: tuple[int, ...] = SIZES, B: tuple[int, ...] = TOKENS) -> list[Info]:
    return [timed(OURS, N, tokens, time(N, tokens)) for N in sizes for tokens in B]


def _found(rows: list[Info]) -> list[tuple[object, ...]]:
    return [row for table in growth("forward", rows) for row in table.rows]


def test_exponents_are_those_of_a_power_law() -> None:
    ((_, _, label, points, a, half_a, b, half_b),) = _found(_rows(lambda N, B: 1e-6 * N**2 * B**0.5))
    assert (label, points) == (OURS, 16)
    assert (a, b) == pytest.approx((2, 0.5))
    assert (half_a, half_b) == pytest.approx((0, 0), abs=1e-9)


def test_the_interval_holds_the_exponent_as_often_as_it_says() -> None:
    """Points of one size are off together: as if there were four of them, not sixteen."""
    stream, held = random.Random(0), 0
    for _ in range(300):
        off = {N: stream.gauss(0, 0.2) for N in SIZES}
        ((*_, a, half, _, _),) = _found(_rows(lambda N, B: N**1.5 * B * math.exp(off[N] + stream.gauss(0, 0.02))))  # noqa: B023
        held += abs(a - 1.5) <= half
    assert held >= 280


def test_what_is_no_power_of_the_sizes_has_a_wide_interval() -> None:
    ((*_, half, _, _),) = _found(_rows(lambda N, B: 1 + (N / 128) ** 2))
    assert half > 0.3


def test_what_does_not_vary_enough_has_no_exponent() -> None:
    ((*_, a, _, b, half_b),) = _found(_rows(lambda N, B: N * B, B=(1, 16)))
    assert a == pytest.approx(1, abs=1)
    assert (b, half_b) == (None, None)
    assert not _found(_rows(lambda N, B: N, sizes=(64, 128), B=(1, 16)))
    together = [row for row in _rows(lambda N, B: N, B=SIZES) if row["N"] == row["B"]]
    assert not _found(together * 2)


def test_a_size_of_two_values_leaves_its_effect_to_no_other() -> None:
    """Wide layers at few tokens and narrow ones at many: what the tokens make is none of N's."""
    power: Callable[[int, int], float] = lambda N, B: N**2 * B  # noqa: E731
    rows = [
        timed(OURS, N, B, power(N, B)) for B, sizes in ((16, (64, 128, 256)), (1024, (512, 1024, 2048))) for N in sizes
    ]
    ((*_, a, half_a, b, _),) = _found(rows)
    assert (a, half_a) == pytest.approx((2, 0), abs=1e-9)
    assert b is None
    rows = [timed(OURS, N, B, power(N, B)) for N, tokens in ((64, (1, 2, 4)), (1024, (8, 16, 32))) for B in tokens]
    ((*_, a, _, b, half_b),) = _found(rows)
    assert (b, half_b) == pytest.approx((1, 0), abs=1e-9)
    assert a is None
    without_one = _rows(power, B=(16, 1024))[:-1]
    ((*_, a, half_a, _, _),) = _found(without_one)
    assert (a, half_a) == pytest.approx((2, 0), abs=1e-9)


def test_what_is_wrong_is_left_out() -> None:
    assert not _found([row | {"wrong": "a sentence"} for row in _rows(lambda N, B: N)])


def test_it_is_one_of_the_tables() -> None:
    titles = [table.title for table in run_tables(run_of(_rows(lambda N, B: 1e-3 * N * B)))]
    assert sum(title.startswith("How time grows") for title in titles) == 1
