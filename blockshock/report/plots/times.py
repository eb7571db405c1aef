"""Time, throughput, and the time without its layout."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots.lines import lines
from blockshock.report.plots.style import Styles


def time(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """p50, with a band up to p95."""
    return lines(rows, "p50_ms", styles, "p50, ms", band=("p50_ms", "p95_ms"))


def throughput(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Rows of X a second."""
    return lines(rows, "tokens_per_s", styles, "rows of X a second")


def without_layout(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """p50 less the layout stage's, of runs in which any method has one."""
    if "stages.layout.p50_ms" not in rows:
        return None
    left = rows["p50_ms"] - rows["stages.layout.p50_ms"].fillna(0.0)
    return lines(rows.assign(left=left), "left", styles, "p50 without layout, ms")
