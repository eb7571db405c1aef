"""Panels of lines: what is asked about bold, rivals grey, and each named where it ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blockshock.report.plots.panels import Part, Point, parts
from blockshock.report.plots.scales import Scale, drawable, over, that_fit
from blockshock.report.plots.style import Styles
from blockshock.report.plots.svg import Figure, Panel, dot, heading, number, path, strokes, text, wrapped

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 206, 26, 206
"""Of the rectangle that holds the lines; their names stand beside it."""
NAMES, ROW = 220, 11
AXES = {"B": "B, rows of x", "N = K": "N = K, features"}
"""What the sizes count."""
Ranks = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Mark:
    """A value with a line of its own: where two break even, what passes, what is the limit."""

    value: float
    says: str


def lines(
    points: Iterable[Point],
    styles: Styles,
    what: str,
    marks: Sequence[Mark] = (),
    *,
    shared: bool = False,
    ranks: Ranks = (),
) -> Figure | None:
    """The figure, or None where there is nothing to compare: no panel has two columns of points.

    Args:
        what: the vertical axis shows.
        shared: whether all panels have one vertical scale.
        ranks: values of labels: of too many rows those with the lowest are drawn. Those of the points by default.
    """
    found = [point for point in points if drawable(point.value)]
    chosen = styles.chosen([point.label for point in found], ranks or [(point.label, point.value) for point in found])
    told = parts(point for point in found if point.label in chosen)
    every = [value for part in told for value in _values(part)]
    panels = [_panel(part, styles, what, marks, every if shared else _values(part)) for part in told]
    left_out = dict.fromkeys(point.label for point in found if point.label not in chosen)
    return Figure(panels, tuple(left_out)) if panels else None


def _values(part: Part) -> list[float]:
    edges = [edge for _, point in part.points for edge in (point.low, point.high) if drawable(edge)]
    return [*(point.value for _, point in part.points), *(edge for edge in edges if edge is not None)]


def _panel(part: Part, styles: Styles, what: str, marks: Sequence[Mark], values: list[float]) -> Panel:
    places = sorted({place for place, _ in part.points})
    across = over(map(float, places), LEFT, RIGHT)
    up = over([*values, *(mark.value for mark in marks)], BOTTOM, TOP)
    by_label: dict[str, list[tuple[int, Point]]] = defaultdict(list)
    for place, point in sorted(part.points, key=lambda placed: placed[0]):
        by_label[point.label].append((place, point))
    body = frame(part.title, what, part.axis, across, up, [float(place) for place in places])
    # What is asked about is drawn last, above all else.
    ends = {}
    for label in sorted(by_label, key=lambda label: styles.roles.get(label) == "subject"):
        body += _line(by_label[label], styles.looks[label], across, up, part.axis)
        last, point = by_label[label][-1]
        ends[label] = (across(last), up(point.value))
    body += marked(marks, up) + named(ends, styles)
    return Panel(WIDTH, HEIGHT, body, f"{part.title}: {what} over {part.axis}")


def frame(title: str, what: str, axis: str, across: Scale, up: Scale, places: list[float], form: str = ".0f") -> str:
    """Title, axes and grid of a panel; ``form`` is that of the numbers at its places."""
    columns, rows = that_fit(places, across, lambda value: format(value, form)), up.ticks()
    body = heading(title, what)
    body += strokes([(LEFT, up(value), RIGHT, up(value)) for value in rows], "r")
    body += strokes([(across(value), TOP, across(value), BOTTOM) for value, _ in columns], "r")
    body += "".join(text(LEFT - 5, up(value) + 4, number(value), "m e") for value in rows)
    body += "".join(text(across(value), BOTTOM + 15, words, "m k") for value, words in columns)
    return body + text((LEFT + RIGHT) / 2, BOTTOM + 28, AXES.get(axis, axis), "m k")


def marked(marks: Sequence[Mark], up: Scale) -> str:
    """Dashed lines at values that have a meaning, and the meaning: below those low in the panel, for what is drawn lies
    above them, and above the others."""
    body = ""
    for mark in marks:
        y = up(mark.value)
        body += strokes([(LEFT, y, RIGHT, y)], "a")
        body += text(LEFT + 3, y + 11 if y > (TOP + BOTTOM) / 2 else y - 3, mark.says, "m o")
    return body


def _line(placed: list[tuple[int, Point]], looks: str, across: Scale, up: Scale, axis: str) -> str:
    at = [(across(place), up(point.value)) for place, point in placed]
    whiskers = [
        (across(place), up(point.low), across(place), up(point.high))
        for place, point in placed
        if point.low is not None and point.high is not None and drawable(point.low) and drawable(point.high)
    ]
    body = path(at, looks) if len(at) > 1 else ""
    body += strokes(whiskers, f"{looks} s")
    for (x, y), (place, point) in zip(at, placed, strict=True):
        body += dot(x, y, looks, f"{point.label}, {axis} = {place}: {point.says or number(point.value)}")
    return body


def named(ends: dict[str, tuple[float, float]], styles: Styles, top: float = TOP, bottom: float = BOTTOM) -> str:
    """The names beside the ends of their lines, moved apart where those are close."""
    ordered = sorted(ends, key=lambda label: ends[label][1])
    texts = {label: wrapped(label) for label in ordered}
    tall = {label: ROW * len(texts[label]) + 1 for label in ordered}
    tops: dict[str, float] = {}
    free = top - 8.0
    for label in ordered:
        tops[label] = max(free, ends[label][1] - tall[label] / 2)
        free = tops[label] + tall[label]
    free = bottom + 12.0
    for label in reversed(ordered):
        tops[label] = min(tops[label], free - tall[label])
        free = tops[label]
    body = ""
    for label in ordered:
        (x, y), middle = ends[label], tops[label] + tall[label] / 2
        looks = styles.looks[label]
        weight = "w" if styles.roles.get(label) == "subject" else ""
        body += path([(x + 4, y), (RIGHT + 6, middle), (NAMES - 3, middle)], f"{looks} s")
        for row, words in enumerate(texts[label]):
            body += text(NAMES, tops[label] + ROW * (row + 1) - 2, words, weight)
    return body
