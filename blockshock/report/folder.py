"""A report as a folder: the page, every table as CSV, every plot as SVG."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from blockshock.report.across import across
from blockshock.report.comparison import comparison
from blockshock.report.flat import rows
from blockshock.report.growth import growth_in_ranks
from blockshock.report.page import Chapter, merged, page
from blockshock.report.render import draw
from blockshock.report.run_tables import run_tables
from blockshock.report.tables import Table, slug
from blockshock.saved import PHASES, Run

PAGE = "report.html"
COMPARED = {"runs-compared": False, "verdicts-compared": True}
"""Tables of several runs beside each other: of times, and of verdicts."""
LIST = ".written"
"""Names what a report consists of, so that the next one in this folder can take it away and nothing else."""


def write_folder(folder: Path, runs: list[Run], progress: Console, most_loss: float | None = None) -> Path:
    """Write the report, in place of one that the folder may hold; the page's path.

    Args:
        progress: where to say what is done; nothing is said where nobody looks on.
        most_loss: as of ``answer``.

    Raises:
        OSError: the folder cannot be written to.
    """
    _clear(folder)
    with progress.status("drawing"):
        names = _names(runs)
        chapters = [replace(chapter(run, name), most_loss=most_loss) for run, name in zip(runs, names, strict=True)]
        beside = {name: across(runs, judged) for name, judged in COMPARED.items()} if len(runs) > 1 else {}
        beside = {name: table for name, table in beside.items() if table.rows}
        beside |= {slug(table.title): table for table in growth_in_ranks(runs)}
        files = {PAGE: page(chapters, list(beside.values())), "tables/results.csv": _results(runs)}
        for one, name in zip(chapters, names, strict=True):
            files |= {f"plots/{picture.name}.svg": picture.svg() for picture in one.pictures}
            tables = (table for table in one.tables if table.columns)
            files |= {f"tables/{slug(f'{name} {table.title}')}.csv": _csv(table) for table in tables}
        files |= {f"tables/{name}.csv": _csv(table) for name, table in beside.items()}
        _write(folder, files)
    return folder / PAGE


def _names(runs: list[Run]) -> list[str]:
    """What tells the files of several runs apart: their names, numbered where these are alike."""
    if len(runs) == 1:
        return [""]
    alike = Counter(slug(run.name) for run in runs)
    return [run.name if alike[slug(run.name)] == 1 else f"{place} {run.name}" for place, run in enumerate(runs, 1)]


def chapter(run: Run, prefix: str) -> Chapter:
    """All that a page shows of a run.

    Args:
        prefix: of the names of its plots, to tell runs apart.
    """
    # What is timed is in the tables over all points: those of each point would say it again.
    details = [table for table in comparison(run.records) if not (table.columns and table.section in PHASES.values())]
    claims = merged(table for table in details if table.section == "verdicts")
    others = [table for table in details if table.section != "verdicts" and not table.columns]
    return Chapter(run, list(draw(run, prefix)), [*claims, *run_tables(run), *others])


def _clear(folder: Path) -> None:
    """Make the folder, and take away what an earlier report wrote there."""
    for name in ("plots", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = folder / LIST
    for name in written.read_text(encoding="utf-8").splitlines() if written.is_file() else ():
        if (path := folder / name).resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode(errors="replace"))
    (folder / LIST).write_text("\n".join(files), encoding="utf-8")


def _csv(table: Table) -> str:
    """The table with its numbers in full."""
    return _lines([[column.name for column in table.columns], *table.rows])


def _results(runs: list[Run]) -> str:
    """Every number of every result, one row each; what is nested gets names with dots."""
    found = rows(runs)
    return _lines([list(found[0]) if found else [], *(row.values() for row in found)])


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
