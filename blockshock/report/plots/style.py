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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, MUTED, GRID, PAPER = "#1b1f27", "#565e6b", "#d9dde4", "#fdfdfe"
COLOURS = (
    "#3a7fd5", "#d2691e", "#2a9457", "#d9455f", "#9165d8", "#14909c", "#cf4f9e", "#a1744a", "#82870f", "#7b8494",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d")
DASHES = ("-", "--", ":", "-.")
WIDTH, ACROSS = 9.0, 3
LEFT, RIGHT, TOP, BOTTOM, GAP, LINE = 0.72, 0.12, 0.62, 0.46, 0.34, 0.19
TITLE_HEIGHT = 0.34
"""Inches, all. The strip of the title is cut off in a page, which has a heading of its own."""
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "block-shock",
    "font.size": 8.0,
    "text.hinting": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.titlesize": 8.5,
    "axes.titlecolor": INK,
    "figure.facecolor": PAPER,
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
    """The labels of a report in their order, by their roles; a label's place gives its looks.

    Attributes:
        labels: all of them.
        roofs: the machine's measured ceilings, where the run has them.
    """

    labels: tuple[str, ...]
    roofs: dict[str, Any]

    @classmethod
    def of(cls, labels: Iterable[tuple[str, str]], roofs: dict[str, Any]) -> Styles:
        """Of labels with their roles as they come: the rivals first, then what is asked about."""
        found = dict.fromkeys(labels)
        places = {role: place for place, role in enumerate(("rival", "subject"))}
        ordered = sorted(found, key=lambda one: places.get(one[1], len(places)))
        return cls(tuple(dict.fromkeys(label for label, _ in ordered)), roofs)

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
    across = min(ACROSS, max(2, len(titles)))
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
        # Its ticks come from scales.py: matplotlib's own take half of the time that a figure takes.
        ax.set_axis_off()
        ax.set_title(title, loc="left", pad=4, y=1.0)
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
