"""Several runs beside each other, use by use: each one's number, and how far these lie apart at one point."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from blockshock.report.asked import counted
from blockshock.report.models import PASSES
from blockshock.report.points import Against, asked
from blockshock.saved import Run, several


def spreads(runs: list[Run]) -> Iterator[str]:
    """Of each use that all runs have, its number in each of them, and how far they lie apart at one point.

    Of the same row in all of them, at each point the fastest of these in the first run; of a use of which no row is in
    all, the fastest of each run by its name, and no distance: they are not the same thing.
    """
    found = [{key: {row.label: row for row in rows} for key, rows in asked(run).items()} for run in runs]
    same: dict[tuple[str, str], list[list[Against]]] = defaultdict(list)
    others: dict[tuple[str, str], list[list[Against]]] = defaultdict(list)
    for key in found[0]:
        if all(key in other for other in found):
            beside = [other[key] for other in found]
            shared = [label for label in beside[0] if all(label in rows for rows in beside)]
            if shared:
                label = min(shared, key=lambda label: beside[0][label].ratio)
                same[key[:2]].append([rows[label] for rows in beside])
            else:
                others[key[:2]].append([min(rows.values(), key=lambda row: row.ratio) for rows in beside])
    for use in dict.fromkeys((*same, *others)):
        yield _spread(runs, use, same[use], True) if use in same else _spread(runs, use, others[use], False)


def _spread(runs: list[Run], use: tuple[str, str], points: list[list[Against]], same: bool) -> str:
    method, section = use
    each = []
    for run, rows in zip(runs, zip(*points, strict=True), strict=True):
        of = "" if same else f" ({counted(row.label for row in rows)})"
        each.append(f"{statistics.median(row.ratio for row in rows):.2f} in {run.name}{of}")
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
