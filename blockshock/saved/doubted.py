"""What a file claims and cannot be: it counts as unknown, nothing is said of it, and a remark says so."""

from __future__ import annotations

from typing import Any

from blockshock.saved.words import several

Info = dict[str, Any]
MOST = 1.5
"""Shares of its limit beyond this are none: ceilings that were measured are off by some percent, not by half."""
LIMIT = "doubted_limit"
"""What a row, or its part, says of itself where its file claims such a limit."""


def share(part: Info) -> Info:
    """A pass, or a part of one, with its share of the limit by its time; less its limit, if that cannot be one. What is
    known of the limit alone is not made up."""
    limit, said = part.get("limit_ms"), part.get("of_limit")
    found = said if limit is None else limit / part["p50_ms"]
    if found is not None and not 0 <= found <= MOST:
        return part | {"limit_ms": None, "of_limit": None, "bound_by": None, LIMIT: True}
    return part if limit is None or said is None else part | {"of_limit": found}


def doubts(infos: list[Info]) -> list[str]:
    """A line with how many rows claim such a limit, if any does."""
    count = sum(any(part.get(LIMIT) for part in (info, *(info.get("limits") or {}).values())) for info in infos)
    have = several(count, "result has a limit", "results have limits")
    told = f"{have} in the file of which more than {MOST:.0%} would be reached: a dash stands for such a one"
    return [told] if count else []
