"""The fastest row of each use at each point, wherever a report names one: by one rule, so that it has one number."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from blockshock.report.alike import least_losing
from blockshock.report.points import Against, asked, pays
from blockshock.saved import Run


def against_best(run: Run) -> list[Against]:
    """Of each use that is asked about, in each section and at each point, its fastest row; in the run's order. Of those
    that are as fast, and of which the same is said, the one that loses least: there, or where nothing says it on the
    other layers."""
    found = list(asked(run).values())
    losses = known_losses(found)
    return [fastest(rows, losses) for rows in found]


def known_losses(found: Iterable[Iterable[Against]]) -> dict[str, float]:
    """What rows lose in the median of all layers, by their labels, as far as anything says it."""
    losses: dict[str, list[float]] = defaultdict(list)
    for row in (row for rows in found for row in rows):
        if row.loss is not None:
            losses[row.label].append(row.loss)
    return {label: statistics.median(known) for label, known in losses.items()}


def fastest(rows: list[Against], losses: dict[str, float]) -> Against:
    """The fastest of these at one point; of those that are as fast, and of which the same is said, what loses least.

    Args:
        losses: of labels, where nothing says it at that point.
    """
    said = pays(min(rows, key=lambda row: row.ratio))
    alike = (row for row in rows if pays(row) is said)
    return least_losing(
        alike, lambda row: row.speed if row.loss is not None else row.speed._replace(loss=losses.get(row.label))
    )
