"""How a result was measured: what two of one thing have in common, or their times are not to be compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Info = dict[str, Any]
HOW = {
    "ranks": "ranks",
    "device": "device",
    "timing": "timing",
    "flush": "flush of the cache",
    "seed": "seed",
    "keep_full_weight": "keeping of the full weight",
}
"""By what a result calls it, what a reader does."""
OF_TIMES = ("timing", "flush")
"""What says nothing of a result without times."""


def ways_apart(one: Info, other: Info) -> tuple[str, ...]:
    """In what of it two results differ, of what both say."""
    pairs = {name: (_said(one, name), _said(other, name)) for name in HOW}
    return tuple(name for name, (ours, theirs) in pairs.items() if ours != theirs and None not in (ours, theirs))


def ways(infos: Iterable[Info], name: str) -> list[str]:
    """What the results say of it, each value once, in their order."""
    timed = (info for info in infos if name not in OF_TIMES or "p50_ms" in info or "verdict" in info)
    return list(dict.fromkeys(str(said) for info in timed if (said := _said(info, name)) is not None))


def _said(info: Info, name: str) -> Any:
    """Older runs say no more of the cache than whether it was emptied."""
    if name == "flush" and info.get(name) is None and info.get("l2_flushed") is False:
        return "none"
    return info.get(name)
