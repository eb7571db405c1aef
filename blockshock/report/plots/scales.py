"""Scales of the panels: where the ticks are, what they say, and their lines of grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from blockshock.report.plots.style import ACROSS, GRID, MUTED

GAP = 0.06
"""Inches between a panel and its ticks' labels."""


def x_ticks(ax: Axes, places: Sequence[float], texts: Sequence[str], grid: bool = True) -> None:
    """Labels below the panel, if there are any texts, and a line of grid at each place."""
    across = ax.get_xaxis_transform()
    below = -GAP / _inches(ax)[1]
    for place, text in zip(places, texts, strict=False):
        ax.text(place, below, text, transform=across, ha="center", va="top", color=MUTED)
    if grid:
        _grid(ax, [((place, 0.0), (place, 1.0)) for place in places], across)


def y_ticks(ax: Axes, places: Sequence[float], texts: Sequence[str], grid: bool = True, size: float = 8.0) -> None:
    """Labels left of the panel, if there are any texts, and a line of grid at each place."""
    up = ax.get_yaxis_transform()
    left = -GAP / _inches(ax)[0]
    for place, text in zip(places, texts, strict=False):
        ax.text(left, place, text, transform=up, ha="right", va="center", color=MUTED, fontsize=size)
    if grid:
        _grid(ax, [((0.0, place), (1.0, place)) for place in places], up)


def names(axes: Sequence[Axes], labels: Sequence[str], size: float = 7.0) -> None:
    """A row per label in each panel, named left of the first panel of each row of them."""
    for place, ax in enumerate(axes):
        y_ticks(ax, range(len(labels)), labels if place % ACROSS == 0 else (), grid=False, size=size)
        ax.set_ylim(-0.6, len(labels) - 0.4)


def from_zero(ax: Axes, high: float) -> None:
    """A linear horizontal axis from zero."""
    places = [place for place in MaxNLocator(3).tick_values(0, high) if 0 <= place <= high * 1.02]
    x_ticks(ax, places, [number_text(place) for place in places])
    ax.set_xlim(0, high * 1.03)


def _inches(ax: Axes) -> tuple[float, float]:
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_position()
    return box.width * figure.get_figwidth(), box.height * figure.get_figheight()


def _grid(ax: Axes, segments: Any, transform: Any) -> None:
    lines = LineCollection(segments, colors=[GRID], linewidths=0.6, transform=transform, zorder=0.5)
    ax.add_collection(lines, autolim=False)


def sizes(ax: Axes, values: Iterable[int], named: bool = True, room: float = 0.055) -> None:
    """A horizontal log axis of sizes that names, if at all, those that were measured, as far as they fit."""
    found = sorted(set(values))
    span = math.log(found[-1] / found[0]) or 1.0
    kept: list[int] = []
    for value in found:
        letters = len(size_text(value)) + (len(size_text(kept[-1])) if kept else 0)
        if not kept or math.log(value / kept[-1]) / span > room * letters / 2:
            kept.append(value)
    ax.set_xscale("log")
    x_ticks(ax, kept, [size_text(value) for value in kept] if named else ())
    margin = max((found[-1] / found[0]) ** 0.06, 1.1)
    ax.set_xlim(found[0] / margin, found[-1] * margin)


def size_text(value: int) -> str:
    """4096 as 4k: k is 1024."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def number_text(value: float) -> str:
    """A tick's number, short: 1.35M, 20k, 0.002."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def quantity(axes: Sequence[Axes], values: Any) -> None:
    """The same vertical log axis for all panels, with round ticks: of one range linearly, of many by 1, 2, 5."""
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found) & (found > 0)]
    low, high = float(found.min()), float(found.max())
    margin = max((high / low) ** 0.06, 1.03)
    low, high = low / margin, high * margin
    ticks = _ticks(low, high)
    for place, ax in enumerate(axes):
        ax.set_yscale("log")
        y_ticks(ax, ticks, [number_text(tick) for tick in ticks] if place % ACROSS == 0 else ())
        ax.set_ylim(low, high)


def spread(ax: Axes, values: Sequence[float]) -> None:
    """A horizontal log axis with round ticks."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.04, 1.01)
    ax.set_xscale("log")
    ax.set_xlim(low / margin, high * margin)
    ticks = _ticks(low / margin, high * margin)
    x_ticks(ax, ticks, [number_text(tick) for tick in ticks])


def _ticks(low: float, high: float) -> list[float]:
    if high / low < 5:
        return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]
