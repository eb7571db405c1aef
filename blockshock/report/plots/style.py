"""How plots look: one colour, marker and dash a label in all of them, and figures of panels with their legend below.

Colours stand out from a light and from a dark page: each has a contrast of 3 or more with both. What is drawn in INK,
MUTED or GRID follows the page's theme, for the page replaces these very colours by its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

INK, MUTED, GRID, PAPER = "#1b1f27", "#565e6b", "#d9dde4", "#fdfdfe"
COLOURS = (
    "#3a7fd5", "#d2691e", "#2a9457", "#d9455f", "#9165d8", "#14909c", "#cf4f9e", "#a1744a", "#82870f", "#7b8494",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
DASHES = ("-", "--", ":", "-.")
RIVALS = ("dense_tp_row", "dense_single")
WIDTH = 9.0
LEFT, RIGHT, TOP, BOTTOM, GAP, LINE = 0.72, 0.12, 0.62, 0.46, 0.34, 0.19
TITLE_HEIGHT = 0.34
"""Inches, all. The strip of the title is cut off in a page, which has a heading of its own."""
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "block-shock",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "savefig.facecolor": PAPER,
}


def use_settings() -> None:
    """Make matplotlib draw as this module says, in this process."""
    mpl.use("agg")
    mpl.rcParams.update(SETTINGS)


@dataclass(frozen=True)
class Styles:
    """The labels of a report in their order, the rivals first; a label's place gives its looks.

    Attributes:
        labels: all of them.
        roofs: the machine's measured ceilings, where the run has them.
    """

    labels: tuple[str, ...]
    roofs: dict[str, Any]

    @classmethod
    def of(cls, labels: Iterable[str], roofs: dict[str, Any]) -> Styles:
        """Of labels as they come."""
        found = list(dict.fromkeys(labels))
        return cls((*(r for r in RIVALS if r in found), *(label for label in found if label not in RIVALS)), roofs)

    def colour(self, label: str) -> str:
        """Its colour."""
        return COLOURS[self.labels.index(label) % len(COLOURS)]

    def marker(self, label: str) -> str:
        """Its marker."""
        return MARKERS[self.labels.index(label) % len(MARKERS)]

    def line(self, label: str) -> dict[str, Any]:
        """All of its looks, as ``Axes.plot`` takes them."""
        dash = DASHES[self.labels.index(label) // len(COLOURS) % len(DASHES)]
        return {"color": self.colour(label), "marker": self.marker(label), "linestyle": dash, "label": label}

    def sorted(self, labels: Iterable[str]) -> list[str]:
        """Labels in the order of the report."""
        return sorted(set(labels), key=self.labels.index)


def panels(
    titles: Sequence[str],
    *,
    legend: Sequence[str] = (),
    height: float = 1.9,
    left: float = LEFT,
    step: float = 0.14,
    shared: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of up to three panels a row, with room for a title above and a legend below.

    Args:
        legend: the labels that it will name.
        left: inches left of each row, or of each panel if the vertical axis is not shared.
        step: inches between panels that share it.
    """
    across = min(3, max(2, len(titles)))
    rows = math.ceil(len(titles) / across)
    foot = BOTTOM + LINE * _legend_rows(legend)
    tall = TOP + rows * height + (rows - 1) * (GAP + 0.22) + foot
    step = step if shared else left
    wide = (WIDTH - left - RIGHT - (across - 1) * step) / across
    figure = Figure(figsize=(WIDTH, tall))
    axes: list[Axes] = []
    for place, title in enumerate(titles):
        row, column = divmod(place, across)
        bottom = tall - TOP - (row + 1) * height - row * (GAP + 0.22)
        box = ((left + column * (wide + step)) / WIDTH, bottom / tall, wide / WIDTH, height / tall)
        ax = figure.add_axes(box)
        # Where titles and labels are is known: matplotlib would measure every tick to find a place for them.
        ax.set_title(title, loc="left", pad=4, y=1.0)
        ax.xaxis.set_label_coords(0.5, 0)
        ax.yaxis.set_label_coords(0, 0.5)
        if shared and column:
            ax.tick_params(labelleft=False, left=False)
        axes.append(ax)
    return figure, axes


def _columns(legend: Sequence[str]) -> int:
    """Of a legend as wide as the figure, in letters of 8 points."""
    return max(1, min(len(legend), int((WIDTH - 0.2) / (0.5 + 0.066 * max(map(len, legend), default=1)))))


def _legend_rows(legend: Sequence[str]) -> int:
    return math.ceil(len(legend) / _columns(legend)) if legend else 0


def finish(figure: Figure, handles: dict[str, Any], x_label: str, y_label: str) -> Figure:
    """Label the axes, once for the figure, and put the legend below: of each label its line, or a bar's colour."""
    tall = figure.get_figheight()
    foot = LINE * _legend_rows(list(handles))
    figure.text(0.5, (foot + 0.1) / tall, x_label, ha="center", va="bottom")
    figure.text(0.012, 0.5 + (foot - 0.2) / tall / 2, y_label, rotation=90, ha="left", va="center")
    columns = _columns(list(handles))
    wide = WIDTH / columns
    for place, (label, handle) in enumerate(handles.items()):
        row, column = divmod(place, columns)
        x, y = (column * wide + 0.15) / WIDTH, (foot - (row + 0.45) * LINE) / tall
        figure.add_artist(_key(handle, x, y))
        figure.text(x + 0.36 / WIDTH, y, label, va="center_baseline")
    return figure


def _key(handle: Any, x: float, y: float) -> Line2D:
    """What stands before a label in the legend: a piece of its line, or a square of a bar's colour."""
    if isinstance(handle, str):
        return Line2D([x + 0.14 / WIDTH], [y], linestyle="", marker="s", markersize=7, color=handle)
    looks = {"color": handle.get_color(), "marker": handle.get_marker(), "linestyle": handle.get_linestyle()}
    return Line2D([x, x + 0.14 / WIDTH, x + 0.28 / WIDTH], [y, y, y], markevery=[1], **looks)


def log_axis(axis: Any, ticks: Sequence[float], texts: Sequence[str]) -> None:
    """A log axis with these ticks and no others."""
    axis._set_axes_scale("log")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(texts))
    axis.set_minor_locator(NullLocator())


def sizes(axis: Any, values: Iterable[int], room: float = 0.055) -> None:
    """A log axis of sizes that names those that were measured, as far as they fit."""
    found = sorted(set(values))
    span = math.log(found[-1] / found[0]) or 1.0
    kept: list[int] = []
    for value in found:
        letters = len(size_text(value)) + (len(size_text(kept[-1])) if kept else 0)
        if not kept or math.log(value / kept[-1]) / span > room * letters / 2:
            kept.append(value)
    log_axis(axis, kept, [size_text(value) for value in kept])


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
    for ax in axes:
        log_axis(ax.yaxis, ticks, [number_text(tick) for tick in ticks])
        ax.set_ylim(low, high)


def _ticks(low: float, high: float) -> list[float]:
    if high / low < 5:
        return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]
