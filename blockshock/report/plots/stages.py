"""What a pass or a step is made of: a bar per method, a colour per stage, a panel per size."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots.scales import from_zero, names, size_text
from blockshock.report.plots.style import COLOURS, Styles, finish, panels

ORDER = ("matmul", "layout", "reduce", "grad_x", "grad_w", "optimizer", "mask", "compress", "refresh")
OTHER = "not told apart"
"""What a pass takes beyond its stages: most of torch's own backward pass, of DTensor."""
LEAST = 0.1
MOST_N, MOST_B = 2, 3
"""Sizes that are drawn: a row of panels an N."""


def stages(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """The figure, or None if no row has stages."""
    found = [name.split(".")[1] for name in rows if name.startswith("stages.") and name.endswith(".p50_ms")]
    found = [name for name in found if rows[f"stages.{name}.p50_ms"].notna().any()]
    if not found:
        return None
    found.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    rest = _beyond(rows, found)
    if (rest > 0).any():
        rows = rows.assign(**{f"stages.{OTHER}.p50_ms": rest})
        found.append(OTHER)
    colours = {name: COLOURS[(ORDER.index(name) if name in ORDER else found.index(name)) % 10] for name in found}
    labels = styles.sorted(rows["label"])[::-1]
    measured = rows[["N", "B"]].drop_duplicates()
    there = set(measured.itertuples(index=False, name=None))
    points = [
        point for point in product(_spread(measured["N"], MOST_N), _spread(measured["B"], MOST_B)) if point in there
    ]
    left = min(0.25 + 0.058 * max(map(len, labels)), 3.2)
    titles = [f"N = {size_text(N)}, B = {size_text(B)}" for N, B in points]
    figure, axes = panels(titles, legend=found, height=0.25 + 0.135 * len(labels), left=left, step=0.32)
    places = np.arange(len(labels))
    for ax, (N, B) in zip(axes, points, strict=True):
        at = (
            rows[(rows["N"] == N) & (rows["B"] == B)]
            .drop_duplicates("label", keep="last")
            .set_index("label")
            .reindex(labels)
        )
        start = np.zeros(len(labels))
        for name in found:
            end = start + at[f"stages.{name}.p50_ms"].fillna(0.0).to_numpy(dtype=float)
            there = end > start
            ax.hlines(places[there], start[there], end[there], color=colours[name], linewidth=7)
            start = end
        from_zero(ax, start.max())
    names(axes, labels)
    return finish(figure, colours, "p50 of each stage, ms, each panel to its own scale", "")


def _beyond(rows: pd.DataFrame, found: list[str]) -> pd.Series:
    """The rest of each row's time; stages are timed in rounds of their own, so a little more or less is none."""
    rest = rows["p50_ms"] - rows[[f"stages.{name}.p50_ms" for name in found]].sum(axis=1)
    return rest.where(rest > LEAST * rows["p50_ms"], 0.0)


def _spread(values: pd.Series, most: int) -> list[int]:
    """At most so many of the values, of those that are common: a sweep along one axis has many that the rest lack."""
    counts = values.value_counts()
    every = sorted(counts.index[counts * 2 >= counts.max()])
    places = np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)
    return [every[place] for place in places]
