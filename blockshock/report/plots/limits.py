"""How near the machine's limits each point comes: the share over N, and the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from blockshock.report.plots.lines import lines
from blockshock.report.plots.scales import quantity, spread
from blockshock.report.plots.style import Styles, finish, panels


def of_limit(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """The share in per cent."""
    if "of_limit" not in rows:
        return None
    return lines(rows.assign(share=100 * rows["of_limit"]), "share", styles, "% of the limit", mark=100.0)


def roofline(rows: pd.DataFrame, styles: Styles) -> Figure | None:
    """FLOP/s attained over FLOPs per byte of memory traffic; None without the machine's ceilings."""
    bandwidth = styles.roofs.get("memory_bytes_per_s")
    if not bandwidth or "work.flops" not in rows:
        return None
    rows = rows[(rows["work.flops"] > 0) & (rows["work.memory_bytes"] > 0) & (rows["p50_ms"] > 0)]
    if rows.empty:
        return None
    # Where the products were timed by themselves, what the ranks say to each other is not in their way.
    alone = "limits.products.p50_ms"
    taken = rows[alone].fillna(rows["p50_ms"]) if alone in rows else rows["p50_ms"]
    rows = rows.assign(intensity=rows["work.flops"] / rows["work.memory_bytes"], rate=rows["work.flops"] / taken / 1e9)
    labels = styles.sorted(rows["label"])
    figure, (ax,) = panels([""], legend=labels, height=3.6)
    box = ax.get_position()
    ax.set_position((box.x0, box.y0, 1 - 1.3 * box.x0, box.height))
    low, high = rows["intensity"].min() / 1.5, rows["intensity"].max() * 1.5
    drawn = list(rows["rate"]) + _roofs(ax, styles.roofs, set(rows["dtype"]), low, high)
    handles = {}
    for label, points in rows.groupby("label", sort=False):
        looks = styles.line(label) | {"linestyle": "", "alpha": 0.85}
        handles[label] = ax.plot(points["intensity"], points["rate"], **looks)[0]
    quantity([ax], drawn)
    spread(ax, [low, high])
    x_label, y_label = "FLOPs per byte of memory traffic", "TFLOP/s of one rank's products"
    return finish(figure, {label: handles[label] for label in labels}, x_label, y_label)


def _roofs(ax: Any, roofs: dict[str, Any], dtypes: set[str], low: float, high: float) -> list[float]:
    """Draw a roof per unit and dtype; the heights that must be in the picture."""
    heights = []
    slope = roofs["memory_bytes_per_s"] / 1e12
    for unit, dash in (("dense", "-"), ("sparse", "--")):
        for dtype, rate in (roofs.get(f"{unit}_flops_per_s") or {}).items():
            if dtype not in dtypes or not rate:
                continue
            top = rate / 1e12
            x = np.geomspace(low, high, 200)
            ax.plot(x, np.minimum(slope * x, top), color="#7b8494", linestyle=dash, linewidth=1.4, zorder=1)
            name = f"{'2:4' if unit == 'sparse' else unit} {dtype}: {top:,.0f} TFLOP/s"
            # The two roofs may be close: dense is named above its own, 2:4 below.
            place = {"ha": "right", "va": "bottom"} if unit == "dense" else {"ha": "right", "va": "top"}
            ax.text(high, top * (1.03 if unit == "dense" else 0.95), name, fontsize=7, **place)
            heights += [top * 1.2]
    ax.text(low * 1.05, slope * low * 1.25, f"memory: {slope * 1e3:,.0f} GB/s", fontsize=7, va="bottom")
    return heights
