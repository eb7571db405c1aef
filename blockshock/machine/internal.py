"""What is known of one of torch's private parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Internal:
    """What is known of a private part.

    Attributes:
        without: what breaks where it is missing or does something else.
        attempt: uses it on something small; raises where it does not do what it did.
        device: ``cuda``: only a GPU can try it.
        lacks: why it cannot be tried on that GPU, or None.
    """

    without: str
    attempt: Callable[[], None]
    device: str = "cpu"
    lacks: Callable[[], str | None] = lambda: None


def check(right: bool) -> None:
    """What an attempt ends with. Raises AssertionError unless it is right."""
    if not right:
        raise AssertionError("it does not do what it did")
