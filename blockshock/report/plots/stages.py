"""What a pass or a step is made of: a bar per method, a colour per stage, a panel per size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blockshock.report.plots.style import COLOURS, Styles, finish, number_text, panels, size_text

ORDER = ("matmul", "layout", "reduce", "gather", "grad_x", "grad_w", "optimizer", "mask", "compress", "refresh")
MOST = 4
"""Sizes each way: more panels would be too small to read."""


def stages(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """The figure, or None if no row has stages."""
    names = [name.split(".")[1] for name in rows if name.startswith("stages.") and name.endswith(".p50_ms")]
    names = [name for name in names if rows[f"stages.{name}.p50_ms"].notna().any()]
    if not names:
        return None
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    colours = {name: COLOURS[(ORDER.index(name) if name in ORDER else names.index(name)) % 10] for name in names}
    labels = styles.sorted(rows["label"])[::-1]
    points = [(N, B) for N in _spread(rows["N"]) for B in _spread(rows["B"])]
    points = [point for point in points if ((rows["N"] == point[0]) & (rows["B"] == point[1])).any()]
    left = min(0.25 + 0.058 * max(map(len, labels)), 3.2)
    titles = [f"N = {size_text(N)}, B = {size_text(B)}" for N, B in points]
    figure, axes = panels(titles, legend=names, height=0.25 + 0.135 * len(labels), left=left, step=0.32)
    places = np.arange(len(labels))
    for place, (ax, (N, B)) in enumerate(zip(axes, points, strict=True)):
        at = rows[(rows["N"] == N) & (rows["B"] == B)].set_index("label").reindex(labels)
        start = np.zeros(len(labels))
        for name in names:
            end = start + at[f"stages.{name}.p50_ms"].fillna(0.0).to_numpy(dtype=float)
            there = end > start
            ax.hlines(places[there], start[there], end[there], color=colours[name], linewidth=7)
            start = end
        ticks = MaxNLocator(3).tick_values(0, start.max())
        ticks = ticks[ticks <= start.max() * 1.02]
        ax.set_xticks(ticks, [number_text(tick) for tick in ticks])
        ax.set_xlim(0, start.max() * 1.03)
        ax.set_yticks(places, labels if place % 3 == 0 else [""] * len(labels), fontsize=7)
        ax.grid(axis="y", visible=False)
        ax.set_ylim(-0.6, len(labels) - 0.4)
    return finish(figure, colours, "p50 of each stage, ms, each panel to its own scale", "")


def _spread(values: Any) -> list[int]:
    """At most MOST of the values, the least and the greatest among them."""
    found = sorted(set(values))
    places = np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)
    return [found[place] for place in places]
