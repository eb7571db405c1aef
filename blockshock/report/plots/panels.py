"""Which panels a figure has: one for each layer, over B; or one for each B, over N, where there are more sizes than B.

Layers that are not square have panels of their own in either case. A panel with a single column of points answers
nothing that a table does not, and is not drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

MOST_PANELS = 6
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A value of a row at a layer and B; with its interval, where it has one."""

    label: str
    N: int
    K: int
    B: int
    value: float
    low: float | None = None
    high: float | None = None
    says: str = ""


@dataclass(frozen=True)
class Part:
    """What goes into one panel: points by their place on the axis."""

    title: str
    axis: str
    points: list[tuple[int, Point]]


def layer(N: int, K: int) -> str:
    """4096², or 28672×8192."""
    return f"{N}²" if N == K else f"{N}×{K}"


def sized(N: int, K: int) -> str:
    """The same with the names of its sizes."""
    return f"N = K = {N}" if N == K else f"N×K = {N}×{K}"


def parts(points: Iterable[Point]) -> list[Part]:
    """The panels, the smallest layer first; of many those that are spread over all."""
    found = list(points)
    square = [point for point in found if point.N == point.K]
    over_N = len({point.N for point in square}) > len({point.B for point in square})
    grouped: dict[tuple[bool, int, int, int], list[tuple[int, Point]]] = defaultdict(list)
    for point in found:
        if over_N and point.N == point.K:
            grouped[False, point.B, 0, 0].append((point.N, point))
        else:
            grouped[True, point.N * point.K, point.N, point.K].append((point.B, point))
    told = [
        Part(sized(N, K), "B", placed) if is_layer else Part(f"B = {first}", "N = K", placed)
        for (is_layer, first, N, K), placed in sorted(grouped.items(), key=lambda item: item[0])
    ]
    return spread([part for part in told if len({place for place, _ in part.points}) > 1], MOST_PANELS)


def spread(found: list[T], most: int) -> list[T]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(found) <= most:
        return found
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]
