"""Small multiples: a panel per B, a line per method over N. Rows of a single N and several B change the two about."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockshock.report.plots.scales import quantity, sizes
from blockshock.report.plots.style import ACROSS, Styles, finish, panels


def axes_of(rows: pd.DataFrame) -> tuple[str, str]:
    """What the horizontal axis shows, and what the panels."""
    return ("B", "N") if rows["N"].nunique() == 1 and rows["B"].nunique() > 1 else ("N", "B")


def lines(
    rows: pd.DataFrame,
    value: str,
    styles: Styles,
    y_label: str,
    *,
    band: tuple[str, str] | None = None,
    dotted: str | None = None,
    crosses: str | None = None,
    mark: float | None = None,
) -> Figure | None:
    """The figure, or None if no row has the value.

    Args:
        rows: with ``label``, ``N``, ``B`` and the columns named below.
        value: the column that the lines show.
        band: columns with the lower and the upper edge of a band about each line.
        dotted, crosses: a column that is drawn beside it as a thin dotted line, as crosses.
        mark: a value that deserves a line of its own, the break-even say.
    """
    if value not in rows:
        return None
    drawn = [value, *(band or ()), *filter(None, (dotted, crosses))]
    rows = rows.loc[rows[value] > 0, list(dict.fromkeys(["label", "N", "B", *drawn]))]
    if rows.empty:
        return None
    across, over = axes_of(rows)
    labels = styles.sorted(rows["label"])
    shown = sorted(rows[over].unique())
    figure, axes = panels([f"{over} = {one}" for one in shown], legend=labels)
    handles: dict[str, Any] = {}
    for place, (ax, one) in enumerate(zip(axes, shown, strict=True)):
        sizes(ax, rows[across], named=place + ACROSS >= len(shown))
        if mark is not None:
            ax.axhline(mark, color="#7b8494", linewidth=1.0, linestyle="--", zorder=1)
        for label, line in rows[rows[over] == one].sort_values(across).groupby("label", sort=False):
            handles[label] = ax.plot(line[across].to_numpy(), line[value].to_numpy(), **styles.line(label))[0]
            _beside(ax, line, across, styles.colour(label), band, dotted, crosses)
    quantity(axes, [*rows[drawn].to_numpy(dtype=float).ravel(), *([] if mark is None else [mark])])
    return finish(figure, {label: handles[label] for label in labels}, _named(across, rows), y_label)


def _beside(
    ax: Axes, line: pd.DataFrame, across: str, colour: str, band: Any, dotted: str | None, crosses: str | None
) -> None:
    x = line[across].to_numpy()
    if band:
        low, high = (line[edge].to_numpy() for edge in band)
        if len(line) > 1:
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        else:
            ax.vlines(x, low, high, color=colour, linewidth=1.0)
    if dotted:
        ax.plot(x, line[dotted].to_numpy(), color=colour, linewidth=0.8, linestyle=":")
    if crosses:
        ax.plot(x, line[crosses].to_numpy(), color=colour, linestyle="", marker="x", markersize=5)


def _named(across: str, rows: pd.DataFrame) -> str:
    return f"{'N = K' if across == 'N' else across}{' (k = 1024)' if rows[across].max() >= 1024 else ''}"
