"""Where the time goes: a bar a row, all of the same length, so that no stage is too small to be seen."""

from __future__ import annotations

from typing import Any

from blockshock.report.plots.lines import Ranks
from blockshock.report.plots.panels import sized, spread
from blockshock.report.plots.scales import drawable
from blockshock.report.plots.style import Styles
from blockshock.report.plots.svg import LETTER, Figure, Panel, box, heading, text, wrapped
from blockshock.saved import STAGES

WIDTH, LEFT, LONG, TOP, ROW = 380, 160, 158, 24, 32
MOST_PANELS = 4
LAYOUT, REST = "layout", "not told apart"
"""What the idea adds is no part of the products here. The rest is what torch does not show: most of its own backward
pass, all of DTensor's."""
LOOKS = {"products": "c0", LAYOUT: "c1", "communication": "c2", "update": "c3", REST: "g"}
LEAST = 0.1

Info = dict[str, Any]


def stages(infos: list[Info], styles: Styles, ranks: Ranks) -> Figure | None:
    """A panel for each of a few points from the smallest to the largest; None if no row has stages.

    Args:
        ranks: values of labels: of too many rows those with the lowest are drawn.
    """
    rows = [info for info in infos if info.get("stages") and drawable(info["p50_ms"])]
    chosen = styles.chosen([info["label"] for info in rows], ranks)
    points = sorted({(info["N"] * info["K"] * info["B"], info["N"], info["K"], info["B"]) for info in rows})
    panels = []
    for _, N, K, B in spread(points, MOST_PANELS):
        at = {info["label"]: info for info in rows if (info["N"], info["K"], info["B"]) == (N, K, B)}
        shown = sorted((at[label] for label in chosen if label in at), key=lambda info: info["p50_ms"])
        if len(shown) > 1:
            panels.append(_panel(f"{sized(N, K)}, B = {B}", shown, styles))
    left_out = dict.fromkeys(info["label"] for info in rows if info["label"] not in chosen)
    return Figure(panels, tuple(left_out)) if panels else None


def kinds(info: Info) -> dict[str, float]:
    """Milliseconds by what they are spent on."""
    of = {name: kind for kind, names in STAGES.items() for name in names} | {LAYOUT: LAYOUT}
    found = dict.fromkeys(LOOKS, 0.0)
    for name, times in info["stages"].items():
        found[of.get(name, REST)] += times["p50_ms"]
    # Stages are timed in rounds of their own, so a little more or less than the whole is none.
    rest = info["p50_ms"] - sum(found.values())
    found[REST] += rest if rest > LEAST * info["p50_ms"] else 0.0
    return {kind: ms for kind, ms in found.items() if ms > 0}


def _panel(title: str, shown: list[Info], styles: Styles) -> Panel:
    body = heading(title, "share of each, and ms in all")
    for row, info in enumerate(shown):
        top = TOP + row * ROW
        weight = "w" if styles.roles.get(info["label"]) == "subject" else ""
        words = wrapped(info["label"])
        for line, part in enumerate(words):
            body += text(2, top + ROW / 2 + 4 + 10.5 * (line - (len(words) - 1) / 2), part, weight)
        found = kinds(info)
        x, scale = float(LEFT), LONG / sum(found.values())
        for kind, ms in found.items():
            says = f"{info['label']}, {kind}: {ms * scale / LONG:.0%} of {info['p50_ms']:.4f} ms"
            body += box(x, top + 6, ms * scale, ROW - 12, LOOKS[kind], says)
            x += ms * scale
        body += text(LEFT + LONG + 6, top + ROW / 2 + 4, f"{info['p50_ms']:.4f}")
    foot, x = TOP + ROW * len(shown) + 12, 2.0
    there = {kind for info in shown for kind in kinds(info)}
    for kind, looks in LOOKS.items():
        if kind not in there:
            continue
        body += box(x, foot - 8, 9, 9, looks) + text(x + 13, foot, kind, "m")
        x += 26 + LETTER * len(kind)
    return Panel(WIDTH, foot + 8, body, f"Shares of the time by stage, {title}")
