"""A report as a folder: the page, every table as CSV, every plot as PNG and as SVG."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from blockshock.report.across import across
from blockshock.report.comparison import comparison
from blockshock.report.flat import flat
from blockshock.report.page import Chapter, page
from blockshock.report.render import Picture, draw, draw_across
from blockshock.report.run_tables import run_tables
from blockshock.report.tables import Table, slug
from blockshock.saved import Run

PAGE = "report.html"
LIST = ".written"
"""Names what a report consists of, so that the next one in this folder can take it away and nothing else."""


def write_folder(folder: Path, runs: list[Run], progress: Console) -> Path:
    """Write the report, in place of one that the folder may hold; the page's path.

    Args:
        progress: where to say how far it is; nothing is said where nobody looks on.

    Raises:
        OSError: the folder cannot be written to.
    """
    _clear(folder)
    with progress.status("drawing") as status:
        chapters = []
        for run in runs:
            prefix = run.name if len(runs) > 1 else ""
            told = f"drawing {run.name}: plot "
            pictures, missing = draw(run, prefix, lambda n, of, told=told: status.update(f"{told}{n} of {of}"))  # type: ignore[misc]
            chapters.append(Chapter(run, pictures, missing, list(run_tables(run)), list(comparison(run.records))))
        beside, picture = (across(runs), draw_across(runs)) if len(runs) > 1 else (None, None)
        status.update("writing")
        files: dict[str, str | bytes] = {PAGE: page(chapters, beside, picture)}
        for drawn in (*(one for chapter in chapters for one in chapter.pictures), *([picture] if picture else ())):
            files |= _plot(drawn)
        for chapter in chapters:
            prefix = chapter.run.name if len(runs) > 1 else ""
            tables = (*chapter.tables, *(table for table in chapter.details if table.columns))
            files |= {f"tables/{slug(f'{prefix} {table.title}')}.csv": _csv(table) for table in tables}
        if beside:
            files["tables/runs-compared.csv"] = _csv(beside)
        files["tables/results.csv"] = _results(runs)
        _write(folder, files)
    return folder / PAGE


def _clear(folder: Path) -> None:
    """Make the folder, and take away what an earlier report wrote there."""
    for name in ("plots", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = folder / LIST
    for name in written.read_text(encoding="utf-8").splitlines() if written.is_file() else ():
        if (path := folder / name).resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)


def _write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        data = content.encode(errors="replace") if isinstance(content, str) else content
        (folder / name).write_bytes(data)
    (folder / LIST).write_text("\n".join(files), encoding="utf-8")


def _plot(picture: Picture) -> dict[str, str | bytes]:
    return {f"plots/{picture.name}.svg": picture.svg, f"plots/{picture.name}.png": picture.png}


def _csv(table: Table) -> str:
    """The table with its numbers in full."""
    return _lines([[column.name for column in table.columns], *table.rows])


def _results(runs: list[Run]) -> str:
    """Every number of every result, one row each; what is nested gets names with dots."""
    rows: list[dict[str, Any]] = [
        {"run": str(run.path), "test": record["name"], "group": record["group"], **_numbers(record["extra_info"])}
        for run in runs
        for record in run.records
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _lines([names, *([row.get(name) for name in names] for row in rows)])


def _numbers(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(info).items() if not isinstance(value, list)}


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
