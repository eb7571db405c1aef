"""What a value of a saved result must be: a number, a name, a list or an object of such."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Fits = Callable[[Any], bool]
SMALLEST, LARGEST = 1e-100, 1e100
"""Of what is measured: ratios of such numbers, and axes that hold them, stay within what a float can be."""


def number(value: Any) -> bool:
    """0, NaN and inf too: an output that holds one has such errors. Nothing larger or smaller than what is measured."""
    if type(value) not in (int, float):
        return False
    return value in (0, math.inf, -math.inf) or value != value or SMALLEST < abs(value) < LARGEST


def positive(value: Any) -> bool:
    """What is divided by, or drawn on a logarithmic scale."""
    return number(value) and 0 < value < math.inf


def or_inf(number: float) -> float:
    """What to rank a number by: NaN is the worst."""
    return math.inf if math.isnan(number) else number


def number_or_none(value: Any) -> bool:
    return value is None or number(value)


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def size(value: Any) -> bool:
    return whole(value) and value > 0


def text(value: Any) -> bool:
    return isinstance(value, str)


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def each(fits: Fits) -> Fits:
    """An object, all of whose values fit."""
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def items(fits: Fits) -> Fits:
    """A list, all of whose items fit."""
    return lambda value: isinstance(value, list) and all(map(fits, value))


def having(**needed: Fits) -> Fits:
    """An object with at least these values."""
    return lambda value: isinstance(value, dict) and all(fits(value.get(name)) for name, fits in needed.items())


def series_of(fits: Fits) -> Fits:
    """A list of at least one item, all of which fit."""
    return lambda value: bool(value) and items(fits)(value)
