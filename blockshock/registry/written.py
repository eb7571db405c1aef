"""What users write: specs of entries, lists, numbers; what cannot be read is refused in words."""

from __future__ import annotations

import math
from typing import Any

from blockshock.errors import InputError


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """``"gaussian:std=0.5:mean=1"`` → ``("gaussian", {"std": 0.5, "mean": 1})``.

    Raises:
        InputError: a parameter is not of the form ``name=value``, or is given twice.
    """
    name, *pairs = spec.strip().split(":")
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise InputError(f"{spec!r}: {pair!r} is not of the form name=value, as in gaussian:std=0.5")
        if key in parameters:
            raise InputError(f"{spec!r}: {key} is given twice, give it once")
        parameters[key] = _literal(value)
    return name, parameters


def _literal(text: str) -> Any:
    if text in ("yes", "no"):
        return text == "yes"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def check_range(least: float, most: float, **parameters: float) -> None:
    """For entries that take numbers: raises InputError, naming the first that lies outside, or is none."""
    for name, value in parameters.items():
        if isinstance(value, str | bytes) or value is None:
            raise InputError(f"{name} takes a number from {least:g} to {most:g}, got {value!r}")
        if not least <= value <= most:
            raise InputError(f"{name} must lie in {least:g} … {most:g}, got {name}={value}")


def split(option: str, text: str, choices: str = "whole numbers above 0") -> list[str]:
    """The parts of a list that an option was given. Raises InputError, with the choices, if there are none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{option} is empty. Choices: {choices}")
    return parts


def whole(option: str, value: str | int, least: int = 1, *, most: int) -> int:
    """A number that an option was given. Raises InputError unless it is a whole one that lies in least … most."""
    try:
        number = int(value)
    except ValueError:
        raise InputError(f"{option} takes whole numbers, got {value!r}") from None
    if not least <= number <= most:
        bound = f"at least {least}" if number < least else f"at most {most}"
        raise InputError(f"{option} must be {bound}, got {value}")
    return number


def not_negative(option: str, text: str) -> float:
    """A number that an option was given. Raises InputError unless it is 0 or more, and finite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{option} takes a number from 0 up, got {text!r}")
    return number
