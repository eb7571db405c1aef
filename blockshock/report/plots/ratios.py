"""Times over a rival's: lines with confidence bands, and maps over N and B with the line where the two break even."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from blockshock.report.plots.lines import lines
from blockshock.report.plots.scales import names, size_text, x_ticks
from blockshock.report.plots.style import Styles, finish, panels

TAIL = 2.5
MOST_MAPS = 6
LINE = "#101216"
"""Of break-even. The same in both themes, for the cells below it are."""


def over(rows: pd.DataFrame, styles: Styles, span: str | None = None) -> Figure | None:
    """Lines, of every method over the best dense one at each point, or over the first dense one of a span."""
    rival = span and _first(rows, span)
    if span and not rival:
        return None
    y_label = f"time ÷ {rival or 'the best dense one'}'s"
    return lines(ratios(rows, rival), "ratio", styles, y_label, band=("ratio_low", "ratio_high"), mark=1.0)


def heat(rows: pd.DataFrame, styles: Styles, span: str | None = None) -> Figure | None:
    """Maps, of what is asked about over the same: of the fastest of a method, and of each label where there are few."""
    rival, ours = span and _first(rows, span), rows[(rows["role"] == "subject") & rows["sound"]]
    found = ratios(rows, rival)
    found = found[found["label"].isin(ours["label"])]
    if found.empty or (span and not rival):
        return None
    every = _maps(found, dict(zip(ours["label"], ours["method"], strict=True)), styles)
    Ns, Bs = sorted(found["N"].unique()), sorted(found["B"].unique())
    figure, axes = panels(list(every), height=0.3 + 0.24 * len(Bs), left=0.62)
    reach = max(0.1, min(math.log(3), float(np.abs(np.log(found["ratio"])).max())))
    for ax, part in zip(axes, every.values(), strict=True):
        grid = part.pivot_table(index="B", columns="N", values="ratio", aggfunc="min").reindex(index=Bs, columns=Ns)
        _map(ax, grid, reach)
        x_ticks(ax, range(len(Ns)), [size_text(N) for N in Ns], grid=False)
        ax.set_xlim(-0.5, len(Ns) - 0.5)
    names(axes, [size_text(B) for B in Bs], size=8.0)
    return finish(figure, {}, "N = K (k = 1024)", "B")


def _maps(found: pd.DataFrame, methods: dict[str, str], styles: Styles) -> dict[str, pd.DataFrame]:
    """Ratios by the title of their map; without the method's name where there is just one."""
    labels = styles.sorted(found["label"])
    shown = dict.fromkeys(methods[label] for label in labels)
    every = {}
    for method in shown:
        each = [label for label in labels if methods[label] == method]
        if len(each) > 1:
            every[f"the fastest {method}"] = found[found["label"].isin(each)]
        if len(each) == 1 or len(labels) < MOST_MAPS:
            for label in each:
                title = label.removeprefix(f"{method} ") if len(shown) == 1 else label
                every[title] = found[found["label"] == label]
    return every


def _first(rows: pd.DataFrame, span: str) -> str | None:
    """The label of the first dense alternative of a span: one that was timed, else one that a verdict is against."""
    timed = rows.loc[rows["dense"] & rows["sound"] & (rows["span"] == span), "label"]
    if timed.empty and "rival_role" in rows:
        timed = rows.loc[(rows["rival_role"] == "rival") & (rows["rival_span"] == span), "rival"]
    return None if timed.empty else str(timed.iloc[0])


def verdicts(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Those that none of the plots above shows: of other rivals, and ratios of ratios."""
    if "hypothesis" not in rows:
        return None
    other = rows[~(rows["judges"].notna() & ((rows["rival_role"] == "rival") | rows["best_of"]))]
    y_label = f"ratio of {' and '.join(other['hypothesis'].unique())}"
    return lines(other, "ratio", styles, y_label, band=("ratio_low", "ratio_high"), mark=1.0)


def ratios(rows: pd.DataFrame, rival: str | None) -> pd.DataFrame:
    """Label, N, B, ratio, ratio_low, ratio_high: of verdicts where there are any, else of the methods' own rounds.

    Args:
        rival: the label to divide by; None for the best dense alternative at each point.
    """
    found: dict[tuple[str, int, int], tuple[float, float, float]] = {}
    timed = rows[rows["verdict"].isna()] if "verdict" in rows else rows
    used = ["label", "span", "dense", "alone", "N", "B", "p50_ms", "medians", "sound"]
    timed = timed[used] if "p50_ms" in timed else timed.iloc[:0]
    theirs = {alone: _rivals(timed, rival, alone) for alone in (False, True)}
    for row in timed.itertuples():
        if row.label != rival and (base := theirs[row.alone].get((row.N, row.B))):
            medians = row.medians / base.medians
            low, high = np.percentile(medians, [TAIL, 100 - TAIL])
            found[row.label, row.N, row.B] = (row.p50_ms / base.p50_ms, low, high)
    if "verdict" in rows:
        for row in rows[rows["judges"].notna()].itertuples():
            base = theirs[row.alone].get((row.N, row.B))
            if row.rival == rival or (rival is None and (row.best_of or (base and base.label == row.rival))):
                found[row.label, row.N, row.B] = (row.ratio, row.ratio_low, row.ratio_high)
    columns = ["label", "N", "B", "ratio", "ratio_low", "ratio_high"]
    return pd.DataFrame([(*key, *value) for key, value in found.items()], columns=columns)


def _rivals(timed: pd.DataFrame, rival: str | None, alone: bool) -> dict[tuple[int, int], Any]:
    """The row to divide by at each N and B, of what is set beside one device's only, or beside all."""
    if rival is not None:
        return {(row.N, row.B): row for row in timed[timed["label"] == rival].itertuples()}
    if timed.empty:
        return {}
    fair = timed[timed["dense"] & timed["sound"] & ((timed["span"] == "one") | (not alone))]
    return {(row.N, row.B): row for row in fair.sort_values("p50_ms", ascending=False).itertuples()}


def _map(ax: Axes, grid: pd.DataFrame, reach: float) -> None:
    """Cells with their numbers, blue where the rival is slower, and the break-even line between them."""
    values = np.log(grid.to_numpy(dtype=float))
    colours = colormaps["RdBu_r"]
    edges = [np.arange(size + 1) - 0.5 for size in values.shape]
    cells = np.ma.masked_invalid(values)
    ax.pcolormesh(edges[1], edges[0], cells, cmap=colours, vmin=-reach, vmax=reach, edgecolors="face", linewidth=0.3)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            shade = colours((value / reach + 1) / 2)
            ax.text(
                column, row, f"{math.exp(value):.2f}", ha="center", va="center", fontsize=6.5, color=_readable(shade)
            )
    ax.add_collection(LineCollection(_break_even(values), colors=[LINE], linewidths=1.8, capstyle="projecting"))


def _break_even(values: np.ndarray) -> list[Any]:
    """Edges between cells of which one is faster and the other is not; a cell without a number has none."""
    edges = []
    for (row, column), value in np.ndenumerate(values):
        for down, right in ((1, 0), (0, 1)):
            if row + down < values.shape[0] and column + right < values.shape[1]:
                other = values[row + down, column + right]
                if np.isfinite(value) and np.isfinite(other) and (value < 0) != (other < 0):
                    corner = (column + 0.5, row + 0.5)
                    edges.append([(corner[0] - down, corner[1] - right), corner])
    return edges


def _readable(shade: Any) -> str:
    """Black or white, whichever stands out more from the shade."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shade[:3]]
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else "#ffffff"
