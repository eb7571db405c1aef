"""``python -m blockshock report``: the answer and the tables of saved runs, in a terminal, as Markdown, in a folder."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from rich.console import Console

from blockshock.report.across import across
from blockshock.report.answer import answer
from blockshock.report.comparison import comparison
from blockshock.report.limits import limit_lines
from blockshock.report.remarks import remarks
from blockshock.report.run_tables import run_tables
from blockshock.report.show import console_on, print_tables
from blockshock.saved import NotARun, Run, latest_run, read_run


def report(paths: list[Path], markdown: bool, folder: Path | None) -> int:
    """Report on the runs, or on the latest; two or more are compared. Returns 0 if at least one could be read.

    The answer is printed; the tables are too, or written to the folder with all else.
    """
    runs = []
    try:
        chosen = paths or [latest_run()]
    except NotARun as error:
        print(error, file=sys.stderr)
        return 1
    for path in _each_once(chosen):
        try:
            runs.append(read_run(path))
        except NotARun as error:
            print(f"skipped {error}", file=sys.stderr)
    if not runs:
        return 1
    console = console_on(sys.stdout)
    for run in runs:
        _print_answer(console, run, markdown)
        if folder is None:
            print_tables(console, comparison(run.records), markdown)
            print_tables(console, run_tables(run), markdown)
    if folder is not None:
        return _write(console, folder, runs)
    if len(runs) > 1:
        print_tables(console, [across(runs)], markdown)
    return 0


def _each_once(paths: list[Path]) -> list[Path]:
    """The paths, less those that are another's file by another name; says so."""
    places: dict[str, list[Path]] = {}
    for path in paths:
        places.setdefault(os.path.realpath(path), []).append(path)
    for first, *others in places.values():
        if others:
            print(f"{first} was given {1 + len(others)} times: it is reported on once", file=sys.stderr)
    return [first for first, *_ in places.values()]


def _print_answer(console: Console, run: Run, markdown: bool) -> None:
    console.print(f"{'## ' if markdown else ''}{run.path} ({run.taken[:16]})\n")
    for line in (*answer(run), *remarks(run)):
        console.print(f"- {line}")
    for line in limit_lines(run.infos):
        console.print(f"- {line}")
    console.print()


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
