"""``python -m blockshock report``: the answer and the tables of saved runs, for a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blockshock.report.answer import answer
from blockshock.report.comparison import WIDTH, print_comparison, show
from blockshock.report.results import NotARun, Run, latest_run, read_run


def report(paths: list[Path], markdown: bool, folder: Path | None) -> int:
    """Report on the runs, or on the latest; two or more are compared. Returns 0 if at least one could be read."""
    runs = []
    try:
        chosen = paths or [latest_run()]
    except NotARun as error:
        print(error, file=sys.stderr)
        return 1
    for path in chosen:
        try:
            runs.append(read_run(path))
        except NotARun as error:
            print(f"skipped {error}", file=sys.stderr)
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    for run in runs:
        _print_run(console, run, markdown)
    if len(runs) > 1:
        _print_comparison_of(console, runs, markdown)
    if folder is not None and runs:
        console.print(f"Written: {_write_csv(folder, runs)}")
    return 0 if runs else 1


def _print_run(console: Console, run: Run, markdown: bool) -> None:
    console.print(f"{'## ' if markdown else ''}{run.path} ({run.taken[:16]})\n")
    if not run.records:
        console.print("- nothing in it can be shown")
    for line in answer(run) if run.records else ():
        console.print(f"- {line}")
    for name, count in run.left_out.items():
        console.print(f"- left out: {count} results that do not say their {name}, of another version it seems")
    console.print()
    print_comparison(run.records, sys.stdout, markdown)


def _print_comparison_of(console: Console, runs: list[Run], markdown: bool) -> None:
    """Medians of what all runs timed, and their ratios to the first run's."""
    medians = [
        {record["name"]: record["extra_info"]["p50_ms"] for record in run.records if "p50_ms" in record["extra_info"]}
        for run in runs
    ]
    common = [name for name in medians[0] if all(name in others for others in medians)]
    title = f"{len(runs)} runs, p50 in ms and ÷ that of {runs[0].path.name}: {len(common)} benchmarks in all of them"
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for run in runs:
        table.add_column(run.path.name, justify="right", no_wrap=True)
    for name in common:
        first = medians[0][name]
        cells = [f"{first:.4f}", *(f"{other[name]:.4f} ({other[name] / first:.2f})" for other in medians[1:])]
        table.add_row(name, *cells)
    show(console, table, markdown)


def _write_csv(folder: Path, runs: list[Run]) -> Path:
    """Every number of every result, one row each; what is nested gets names with dots."""
    rows = [
        {"run": str(run.path), "test": record["name"], "group": record["group"], **_flat(record["extra_info"])}
        for run in runs
        for record in run.records
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _flat(info: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[prefix + name] = value
    return flat
