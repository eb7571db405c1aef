"""How the error of a layer that is fed its own output grows, step by step, beside the dense product's."""

from __future__ import annotations

from typing import Any

from blockshock.report.plots.lines import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Mark, frame, marked, named
from blockshock.report.plots.panels import sized, spread
from blockshock.report.plots.scales import Scale, drawable, over
from blockshock.report.plots.style import Styles
from blockshock.report.plots.svg import Figure, Panel, path
from blockshock.saved import PASSES

MOST_STEPS = 60


def drift(infos: list[dict[str, Any]], styles: Styles) -> Figure | None:
    """A panel for each layer and B."""
    rows = [info for info in infos if len(info.get("ratio") or ()) > 1 and all(map(drawable, info["ratio"]))]
    chosen = styles.chosen([info["label"] for info in rows], [(info["label"], -max(info["ratio"])) for info in rows])
    panels = []
    for place in dict.fromkeys((info["N"], info["K"], info["B"]) for info in rows):
        shown = [info for info in rows if (info["N"], info["K"], info["B"]) == place and info["label"] in chosen]
        if shown:
            panels.append(_panel(f"{sized(*place[:2])}, B = {place[2]}", shown, styles))
    left_out = dict.fromkeys(info["label"] for info in rows if info["label"] not in chosen)
    return Figure(panels, tuple(left_out)) if panels else None


def _panel(title: str, shown: list[dict[str, Any]], styles: Styles) -> Panel:
    marks = (Mark(1.0, "dense"), Mark(PASSES, "passes below"))
    steps = max(len(info["ratio"]) for info in shown)
    across = Scale(1, steps, LEFT, RIGHT, linear=True)
    up = over([value for info in shown for value in info["ratio"]] + [mark.value for mark in marks], BOTTOM, TOP)
    places = [1.0, *(value for value in across.ticks() if value > 1), float(steps)]
    body = frame(title, "error ÷ dense product's", "steps", across, up, sorted(set(places)))
    ends = {}
    for info in sorted(shown, key=lambda info: styles.roles.get(info["label"]) == "subject"):
        points = [(across(step), up(value)) for step, value in enumerate(info["ratio"], 1)]
        body += path(spread(points, MOST_STEPS), styles.looks[info["label"]])
        ends[info["label"]] = points[-1]
    return Panel(
        WIDTH,
        HEIGHT,
        body + marked(marks, up) + named(ends, styles),
        f"{title}: error over the dense product's, by step",
    )
