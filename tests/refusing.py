"""What ranks refuse, as they say it themselves: where a call on ranks raises, all are started anew, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockshock.ranks import Ranks


def refusals(ranks: Ranks, function: Callable[..., Any], *args: Any) -> list[str]:
    """What each rank's call raises: the error's name, and what it says; empty where it raises nothing."""
    return ranks.run(_refusal, function, *args)


def _refusal(function: Callable[..., Any], *args: Any) -> str:
    try:
        function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
