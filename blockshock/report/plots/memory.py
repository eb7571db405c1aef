"""Peak memory, bytes of the weights as counted and as estimated, and the time that a byte of them takes."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots.lines import lines
from blockshock.report.plots.style import Styles

MIB = 2**20


def peak(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Of the fullest rank, while running, and dotted while building."""
    if "steady_peak_bytes" not in rows:
        return None
    sizes = rows.assign(steady=rows["steady_peak_bytes"] / MIB)
    building = None
    if "building_peak_bytes" in rows:
        sizes, building = sizes.assign(building=rows["building_peak_bytes"] / MIB), "building"
    return lines(sizes, "steady", styles, "peak memory, MiB", dotted=building)


def weights(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """Counted, and estimated as crosses."""
    if "estimated_weight_bytes" not in rows:
        return None
    sizes = rows.assign(counted=rows["weight_bytes"] / MIB, estimated=rows["estimated_weight_bytes"] / MIB)
    return lines(sizes, "counted", styles, "weights, MiB", crosses="estimated")


def per_byte(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """p50 over the stored bytes."""
    return lines(rows.assign(each=rows["p50_ms"] * 1e9 / rows["weight_bytes"]), "each", styles, "ps a byte")
