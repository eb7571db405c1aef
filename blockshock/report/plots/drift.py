"""How the error of a layer grows that is fed its own output again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockshock.report.plots.scales import from_zero, quantity
from blockshock.report.plots.style import Styles, finish, panels
from blockshock.saved import PASSES

ERRORS = {"relative_error": "relative", "max_error": "largest", "mean_error": "mean"}


def errors(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """A panel per kind of error, a line per method; the dense product's relative error dashed."""
    if not set(ERRORS) < set(rows):
        return None
    labels = styles.sorted(rows["label"])
    figure, axes = panels(list(ERRORS.values()), legend=labels, shared=False, left=0.62)
    handles: dict[str, Any] = {}
    for ax, error in zip(axes, ERRORS, strict=True):
        handles |= _over_steps(ax, rows, error, styles)
        if error == "relative_error":
            ax.plot(rows.iloc[0]["dense_relative_error"], color="#7b8494", linestyle="--", linewidth=1.0)
        quantity([ax], [value for series in rows[error] for value in series])
    return finish(figure, {label: handles[label] for label in labels}, "steps", "error")


def ratio(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Over the dense product's error, both of all steps so far."""
    if "ratio" not in rows:
        return None
    labels = styles.sorted(rows["label"])
    figure, axes = panels([""], legend=labels)
    handles = _over_steps(axes[0], rows, "ratio", styles)
    for value in (1.0, PASSES):
        axes[0].axhline(value, color="#7b8494", linestyle="--", linewidth=1.0)
    quantity(axes, [1.0, PASSES, *(value for series in rows["ratio"] for value in series)])
    return finish(figure, {label: handles[label] for label in labels}, "steps", "error over the dense product's")


def _over_steps(ax: Axes, rows: pd.DataFrame, column: str, styles: Styles) -> dict[str, Any]:
    found = {}
    from_zero(ax, max(map(len, rows[column])))
    for label, series in zip(rows["label"], rows[column], strict=True):
        steps = np.arange(1, len(series) + 1)
        found[label] = ax.plot(steps, series, **styles.line(label), markevery=max(1, len(series) // 6))[0]
    return found
