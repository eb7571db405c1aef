"""``python -m blockshock report``: the answer of saved runs on a screen, their tables, or all rows for a program."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from blockshock.report import screen
from blockshock.report.across import UNITS, across, slower, surely
from blockshock.report.answer import answer, verdict_table
from blockshock.report.comparison import comparison
from blockshock.report.flat import rows
from blockshock.report.remarks import remarks
from blockshock.report.run_tables import run_tables
from blockshock.report.show import console_on, markdown, print_tables
from blockshock.report.tables import Table
from blockshock.saved import SECTIONS, NotARun, Run, faults, latest_run, read_run

ALL = "all"
ACROSS = "across"
PASTED = 60_000
"""Bytes of Markdown that go into one comment."""


def report(
    paths: list[Path],
    form: str = "terminal",
    tables: str | None = None,
    folder: Path | None = None,
    fail_if_slower: float | None = None,
) -> int:
    """Report on the runs, or on the latest; two or more are compared. Returns the exit status: 0 if at least one could
    be read, and none is slower than may be.

    Args:
        form: ``terminal``, ``md``, ``csv`` or ``json``.
        tables: a section whose tables are printed in place of the answer, or ``all``.
        folder: where the page, all tables and all plots are written too.
        fail_if_slower: the share by which a benchmark of a later run may be slower than that of the first.
    """
    if tables is not None and tables not in (ALL, *SECTIONS, ACROSS):
        choices = ", ".join((*SECTIONS, ACROSS, ALL))
        print(f"--tables: there are none of {tables!r}; choose {choices}. Runs go before --tables", file=sys.stderr)
        return 2
    if not (runs := _read(paths)):
        return 1
    console = console_on(sys.stdout)
    if form in ("csv", "json"):
        _print_rows(runs, form)
    elif form == "md":
        console.out("\n".join(pasted(runs)))
    elif tables is not None:
        for run in runs:
            print_tables(console, _of(run, tables))
        print_tables(console, _beside(runs) if tables in (ALL, ACROSS) else ())
    else:
        console.out("\n".join(_screen(runs)))
    status = 0 if fail_if_slower is None else _failed(runs, fail_if_slower)
    return status if folder is None else max(status, _write(console, folder, runs))


def _read(paths: list[Path]) -> list[Run]:
    """Those runs that can be read; says of the others why not."""
    runs = []
    try:
        chosen = paths or [latest_run()]
    except NotARun as error:
        print(error, file=sys.stderr)
        return []
    for path in _each_once(chosen):
        try:
            runs.append(read_run(path))
        except NotARun as error:
            print(f"skipped {error}", file=sys.stderr)
    return runs


def _each_once(paths: list[Path]) -> list[Path]:
    """The paths, less those that are another's file by another name; says so."""
    places: dict[str, list[Path]] = {}
    for path in paths:
        places.setdefault(os.path.realpath(path), []).append(path)
    for first, *others in places.values():
        if others:
            print(f"{first} was given {1 + len(others)} times: it is reported on once", file=sys.stderr)
    return [first for first, *_ in places.values()]


def _screen(runs: list[Run]) -> list[str]:
    named = " ".join(str(run.path) for run in runs)
    more = f"more: python -m blockshock report {named} --tables, or --to FOLDER for a page with plots"
    if len(runs) > 1:
        return screen.of_runs(runs, more)
    (run,) = runs
    return screen.of_run(run, f"{run.path} ({run.taken[:16]})", f"{more}; tables of {', '.join(sections(run))}")


def sections(run: Run) -> list[str]:
    """Those of which it has tables."""
    found = {table.section for table in _of(run, ALL)}
    return [section for section in SECTIONS if section in found]


def _of(run: Run, wanted: str, asked: bool = True) -> Iterator[Table]:
    """The tables of a section, or of all, in the order that a reader needs: what was asked and each verdict, then what
    the answer rests on, all else over all points, and last that of each point."""
    summary, each = verdict_table(run) if asked else None, list(comparison(run.records))
    verdicts = sorted((table for table in each if table.section == "verdicts"), key=lambda table: table.title)
    others = [table for table in each if table.section != "verdicts"]
    every = [*([summary] if summary else []), *verdicts, *run_tables(run), *others]
    yield from (table for table in every if wanted in (ALL, table.section))


def _beside(runs: list[Run]) -> list[Table]:
    found = [across([runs[0], run], judged) for run in runs[1:] for judged in UNITS]
    return [table for table in found if table.rows] or found[:1]


def pasted(runs: list[Run], most: int = PASTED) -> Iterator[str]:
    """All of it as Markdown, as far as it fits into so many bytes: first the answers, then the tables in the order of
    what they say; says what it leaves out."""
    size, left = 0, []
    for part in _parts(runs):
        size += (more := len(part.encode()) + 1)
        if size > most - LEFT_OUT_BYTES:
            size -= more
            left.append(part.partition("\n")[0].lstrip("# "))
        else:
            yield part
    if left:
        others = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        named = "; ".join(title if len(title) <= LONGEST else f"{title[:LONGEST]}…" for title in left[:NAMED])
        yield f"Did not fit: {named}{others}. `python -m blockshock report RUN --tables` has them, or `--to FOLDER`"


NAMED, LONGEST = 3, 80
"""Tables that are named where they did not fit, and characters of their titles."""
LEFT_OUT_BYTES = 600
"""More than what says so takes."""


def _parts(runs: list[Run]) -> Iterator[str]:
    for run in runs:
        lines = [f"- {line}" for line in (*answer(run), *remarks(run))]
        yield "\n".join([f"## {run.path} ({run.taken[:16]})", "", *lines, ""])
        if (asked := verdict_table(run)) is not None:
            yield markdown(asked)
    yield from map(markdown, _beside(runs))
    for run in runs:
        yield from map(markdown, _of(run, ALL, asked=False))


def _print_rows(runs: list[Run], form: str) -> None:
    """Every result of every run as a row, for a program to read."""
    found = rows(runs)
    if form == "json":
        json.dump(found, sys.stdout, indent=1)
        print()
        return
    table = csv.DictWriter(sys.stdout, list(found[0]) if found else [], lineterminator="\n")
    table.writeheader()
    table.writerows(found)


def _failed(runs: list[Run], share: float) -> int:
    """1 where something became slower than that, or nothing says whether it did; says so."""
    if len(runs) < 2 or not surely(runs):
        why = "one run was read" if len(runs) < 2 else "no benchmark is in both with an interval"
        print(f"--fail-if-slower compares two runs or more, and {why}", file=sys.stderr)
        return 1
    wrong = [
        f"{run.name}: {record['name']}"
        for run in runs[1:]
        for record in run.records
        if record["extra_info"].get("wrong") or faults(record["extra_info"])
    ]
    if wrong:
        print(f"WRONG, and compared with nothing: {len(wrong)}", *wrong, sep="\n  ", file=sys.stderr)
    found = slower(runs, share)
    if found:
        print(
            f"slower by more than {share:.1%}, beyond the interval: {len(found)}", *found, sep="\n  ", file=sys.stderr
        )
    return int(bool(found or wrong))


def _write(console: Console, folder: Path, runs: list[Run]) -> int:
    # Imported here, for what it takes is an extra that the answer does without.
    write_folder = importlib.import_module("blockshock.report.folder").write_folder
    try:
        page = write_folder(folder, runs, console_on(sys.stderr))
    except OSError as error:
        print(f"cannot write the report to {folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    console.print(f"Written: {page}")
    return 0
