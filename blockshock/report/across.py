"""Two runs or more beside each other: medians of what all of them timed, and their ratios to the first run's."""

from __future__ import annotations

from blockshock.report.remarks import flushes
from blockshock.report.tables import Cell, Column, Table
from blockshock.saved import Run


def medians(run: Run) -> dict[str, float]:
    """p50 in ms of each benchmark that was timed."""
    return {
        record["name"]: record["extra_info"]["p50_ms"] for record in run.records if "p50_ms" in record["extra_info"]
    }


def in_all(runs: list[Run]) -> list[str]:
    """The benchmarks that every run timed, in the first run's order."""
    first, *others = map(medians, runs)
    return [name for name in first if all(name in other for other in others)]


def across(runs: list[Run]) -> Table:
    """The table."""
    first, *others = map(medians, runs)
    common = in_all(runs)
    title = f"{len(runs)} runs, p50 in ms and ÷ that of {runs[0].name}: {len(common)} benchmarks in all of them"
    table = Table(title, "across", (Column("benchmark"), Column(runs[0].name, ".4f")))
    for run in runs[1:]:
        table.columns += (Column(run.name, ".4f"), Column("÷", ".2f"))
    for name in common:
        cells: list[Cell] = [first[name]]
        for other in others:
            cells += [other[name], other[name] / first[name]]
        table.rows.append((name, *cells))
    table.notes += flushes(runs)
    return table
