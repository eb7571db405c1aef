"""Errors against float64 over N, speed that pays for its errors, and what weights of their own lose."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots.lines import lines
from blockshock.report.plots.style import Styles


def relative(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Frobenius norm of the error over that of the output."""
    return lines(rows, "relative_error", styles, "relative error")


def largest(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Of any element."""
    return lines(rows, "max_error", styles, "largest error")


def mean(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Of all elements."""
    return lines(rows, "mean_error", styles, "mean error")


def lost(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Relative error of the output against the dense weight's, of rows that multiply by weights of their own."""
    return lines(rows, "quality.output_error", styles, "relative error of the output")


def quality(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """(1/t)/(1 + mean error), t in seconds; of rows whose output was checked in the same run."""
    if "checked_mean_error" not in rows:
        return None
    adjusted = 1e3 / rows["p50_ms"] / (1 + rows["checked_mean_error"])
    return lines(rows.assign(adjusted=adjusted), "adjusted", styles, "(1/t) / (1 + mean error), 1/s")
