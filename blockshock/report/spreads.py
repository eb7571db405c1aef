"""Several runs beside each other, use by use: each one's number, and how far these lie apart at one point."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from blockshock.report.asked import counted
from blockshock.report.fastest import fastest, known_losses
from blockshock.report.models import PASSES
from blockshock.report.points import Against, asked
from blockshock.saved import Run, several

Points = Sequence[list[Against]]
"""A row of each run at each point."""


def spreads(runs: list[Run]) -> Iterator[str]:
    """Of each use that all runs have, its number in each of them, and how far they lie apart at one point.

    Of the same row in all of them, at each point what is named as the fastest of these in the first run. What a run's
    own fastest come to there stands behind that, where it is another number: by them it is named elsewhere. Of a use of
    which no row is in all, the fastest of each run by its name, and no distance: they are not the same thing.
    """
    found = [{key: {row.label: row for row in rows} for key, rows in asked(run).items()} for run in runs]
    losses = [known_losses(rows.values() for rows in places.values()) for places in found]
    same: dict[tuple[str, str], list[tuple[list[Against], list[Against]]]] = defaultdict(list)
    others: dict[tuple[str, str], list[tuple[list[Against], list[Against]]]] = defaultdict(list)
    for key in found[0]:
        if all(key in other for other in found):
            beside = [other[key] for other in found]
            own = [fastest(list(rows.values()), lost) for rows, lost in zip(beside, losses, strict=True)]
            if shared := [row for label, row in beside[0].items() if all(label in rows for rows in beside)]:
                label = fastest(shared, losses[0]).label
                same[key[:2]].append(([rows[label] for rows in beside], own))
            else:
                others[key[:2]].append((own, own))
    for use in dict.fromkeys((*same, *others)):
        points, of_own = zip(*(same[use] or others[use]), strict=True)
        yield _spread(runs, use, points, of_own, bool(same[use]))


def _spread(runs: list[Run], use: tuple[str, str], points: Points, own: Points, same: bool) -> str:
    method, section = use
    each = []
    for index, run in enumerate(runs):
        number, whose = (statistics.median(rows[index].ratio for rows in some) for some in (points, own))
        of = "" if same else f" ({counted(rows[index].label for rows in points)})"
        of += f" ({whose:.2f} by its own fastest)" if f"{whose:.2f}" != f"{number:.2f}" else ""
        each.append(f"{number:.2f} in {run.name}{of}")
    labels = [row.label for row, *_ in points]
    one, over = len(set(labels)) == 1, several(len(points), "point")
    name = labels[0] if same and one else f"{method} ({counted(labels)})" if same else method
    told = f"{name}, {PASSES[section]}: time ÷ best dense {', '.join(each)}, over {over}"
    if not same:
        return f"{told}; no row of it is in {'both' if len(runs) == 2 else 'all of them'}"
    alike = [rows for rows in points if len({row.rival for row in rows}) == 1]
    if alike:
        apart = max(max(row.ratio for row in rows) / min(row.ratio for row in rows) - 1 for rows in alike)
        told += f"; at one point up to {apart:.1%} apart"
    if others := [rows for rows in points if len({row.rival for row in rows}) > 1]:
        each = [
            f"{counted(row.rival for row in rows)} in {run.name}"
            for run, rows in zip(runs, zip(*others, strict=True), strict=True)
        ]
        told += f"; at {several(len(others), 'point')} the best dense one is another: {', '.join(each)}"
    return told
