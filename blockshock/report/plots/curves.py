"""What recipes learn: the loss on what is held out over steps, and over seconds; the mean over seeds."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from blockshock.report.plots.lines import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, frame, named
from blockshock.report.plots.scales import Scale, drawable, over
from blockshock.report.plots.style import Styles
from blockshock.report.plots.svg import Figure, Panel, dot, number, path

Info = dict[str, Any]
Curve = tuple[Info, list[float], list[float]]
"""Of a row, where it was looked, and what was left to learn."""


def curves(infos: list[Info], styles: Styles) -> Figure | None:
    """Two panels for each length of training."""
    rows = [(info, bits) for info in infos if len(bits := _mean(info["curve_bits"])) > 1 and all(map(drawable, bits))]
    ranks = [(info["label"], info["last_bits"]) for info, _ in rows]
    chosen = styles.chosen([info["label"] for info, _ in rows], ranks)
    panels = []
    by_steps: dict[int, list[tuple[Info, list[float]]]] = defaultdict(list)
    for info, bits in rows:
        if info["label"] in chosen:
            by_steps[info["steps"]].append((info, bits))
    for steps, shown in by_steps.items():
        what = f"bits per {shown[0][0]['unit']}"
        title = f"{shown[0][0]['workload']}, {steps} steps"
        panels.append(_panel(title, what, "steps", [(info, info["curve_steps"], bits) for info, bits in shown], styles))
        timed = [(info, _mean(info["curve_seconds"]), bits) for info, bits in shown]
        panels.append(_panel(title, what, "seconds of training", timed, styles))
    left_out = dict.fromkeys(info["label"] for info, _ in rows if info["label"] not in chosen)
    return Figure(panels, tuple(left_out)) if panels else None


def _mean(curves: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]


def _panel(title: str, what: str, axis: str, rows: list[Curve], styles: Styles) -> Panel:
    furthest = max((place for _, places, _ in rows for place in places if drawable(place)), default=1.0)
    across = Scale(0.0, furthest, LEFT, RIGHT, linear=True)
    up = over([value for _, _, bits in rows for value in bits], BOTTOM, TOP)
    body = frame(title, what, axis, across, up, across.ticks(), "g")
    ends = {}
    for info, places, bits in sorted(rows, key=lambda row: styles.roles.get(row[0]["label"]) == "subject"):
        points = [
            (across(place), up(value)) for place, value in zip(places, bits, strict=False) if 0 <= place <= furthest
        ]
        if not points:
            continue
        body += path(points, styles.looks[info["label"]])
        says = f"{info['label']}: {number(bits[-1])} {what}"
        body += dot(*points[-1], styles.looks[info["label"]], says)
        ends[info["label"]] = points[-1]
    return Panel(WIDTH, HEIGHT, body + named(ends, styles), f"{title}: {what} over {axis}")
