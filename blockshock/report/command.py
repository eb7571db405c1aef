"""``python -m blockshock report``: the answer of saved runs on a screen, their tables, or all rows for a program."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from blockshock.report import screen
from blockshock.report.answer import answer, verdict_table
from blockshock.report.beside import ACROSS, beside
from blockshock.report.comparison import comparison
from blockshock.report.flat import print_rows
from blockshock.report.remarks import remarks
from blockshock.report.run_tables import run_tables
from blockshock.report.show import console_on, markdown, print_tables
from blockshock.report.slower import failed, unsure
from blockshock.report.tables import Table
from blockshock.report.within import within_lines
from blockshock.saved import MOST_LOSS, SECTIONS, NotARun, Run, faults, latest_run, named_apart, read_run

ALL = "all"
NAMES = (*SECTIONS, ACROSS, ALL)
"""What tables are asked for by."""
ENDS = (".json", ".json.gz")
PASTED = 60_000
"""Bytes of Markdown that go into one comment."""


def report(
    paths: list[Path],
    form: str = "terminal",
    tables: str | None = None,
    folder: Path | None = None,
    fail_if_slower: float | None = None,
    most_loss: float | None = None,
) -> int:
    """Report on the runs, or on the latest; two or more are compared. Returns the exit status: 0 if at least one could
    be read and nothing failed a check, of several runs in none after the first, which none is slower than may be; 2 if
    there is no such table.

    Args:
        form: ``terminal``, ``md``, ``csv`` or ``json``.
        tables: a section whose tables are printed in place of the answer, or ``all``.
        folder: where the page, all tables and all plots are written too.
        fail_if_slower: the share by which a benchmark of a later run may be slower than that of the first.
        most_loss: that a row loses which the answer names as the fastest at a batch size; None for MOST_LOSS.
    """
    loss_asked, most_loss = most_loss is not None, MOST_LOSS if most_loss is None else most_loss
    if tables is not None and tables not in NAMES:
        return _no_tables(f"there are none of {tables!r}", NAMES)
    if not (runs := _read(paths, all_of_them=fail_if_slower is not None)):
        return 1
    if loss_asked:
        _say_without_loss(runs, most_loss)
    cannot_say = fail_if_slower is not None and unsure(runs)
    console = console_on(sys.stdout)
    if form in ("csv", "json"):
        print_rows(runs, form)
    elif form == "md":
        console.out("\n".join(pasted(runs, most_loss=most_loss)))
    elif tables is not None:
        found = [*_of_each(runs, tables)]
        found += beside(runs) if tables in (ALL, ACROSS) else []
        if not found:
            had = [name for name in SECTIONS if any(name in sections(run) for run in runs)]
            named = ", ".join(str(run.path) for run in runs)
            return _no_tables(f"{named} has none of {tables!r}", (*had, *((ACROSS,) if len(runs) > 1 else ()), ALL))
        print_tables(console, found)
    else:
        if loss_asked and len(runs) > 1:
            print("--most-loss: what several runs say within a loss is with --format md, and --to", file=sys.stderr)
        console.out("\n".join(_screen(runs, most_loss)))
    slower_than_may_be = fail_if_slower is not None and failed(runs, fail_if_slower)
    status = int(cannot_say or slower_than_may_be or _is_wrong(runs))
    return status if folder is None else max(status, _write(console, folder, runs, most_loss))


def tables_of(words: list[str]) -> tuple[str, list[Path]]:
    """What stands behind ``--tables``: a section, of which there is one at most, else all; and runs, which are what is
    no section and is a path: there, or with a slash or the end of a file's name."""
    named = [word for word in words if word in NAMES]
    others = [word for word in words if word not in NAMES]
    paths = [Path(word) for word in others if word and (os.sep in word or word.endswith(ENDS) or Path(word).exists())]
    unknown = [word for word in others if Path(word) not in paths]
    return " ".join([*named, *unknown]) if named or unknown else ALL, paths


def _say_without_loss(runs: list[Run], most_loss: float) -> None:
    """Names the runs of which the answer has no line within a loss."""
    for run in runs:
        if next(within_lines(run, most_loss), None) is None:
            print(
                f"--most-loss: no row of {run.path} has a loss that counts: those of layers have one that phase 0 "
                "checked, those of networks where the weights are trained, beside a dense row",
                file=sys.stderr,
            )


def _no_tables(why: str, names: tuple[str, ...]) -> int:
    print(f"--tables: {why}; choose one of {', '.join(names)}", file=sys.stderr)
    return 2


def _is_wrong(runs: list[Run]) -> bool:
    """Whether a check failed: of one run, or of several in those after the first, which these are compared with."""
    return any(faults(info) for run in runs[1:] or runs for info in run.infos)


def _read(paths: list[Path], all_of_them: bool) -> list[Run]:
    """Those runs that can be read; says of the others why not.

    Args:
        all_of_them: there are none where one cannot be read: what is asked of several must not be said of a few.
    """
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
            if all_of_them:
                print(f"not compared, for a run cannot be read: {error}", file=sys.stderr)
                return []
            print(f"skipped {error}", file=sys.stderr)
    return named_apart(runs)


def _each_once(paths: list[Path]) -> list[Path]:
    """The paths, less those that are another's file by another name; says so."""
    places: dict[str, list[Path]] = {}
    for path in paths:
        places.setdefault(os.path.realpath(path), []).append(path)
    for first, *others in places.values():
        if others:
            print(f"{first} was given {1 + len(others)} times: it is reported on once", file=sys.stderr)
    return [first for first, *_ in places.values()]


def _screen(runs: list[Run], most_loss: float) -> list[str]:
    # What is no terminal, a file or a log, is as wide as it likes.
    width = screen.fitting(shutil.get_terminal_size().columns) if sys.stdout.isatty() else screen.WIDTH
    named = " ".join(shlex.quote(str(run.path)) for run in runs)
    more = f"more: python -m blockshock report {named} --tables, or --to FOLDER for a page with plots"
    if len(runs) > 1:
        return screen.of_runs(runs, more, width)
    (run,) = runs
    title, more = f"{run.path} ({run.taken[:16]})", f"{more}; tables of {', '.join(sections(run))}"
    return screen.of_run(run, title, more, width, most_loss=most_loss)


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


def _of_each(runs: list[Run], wanted: str, asked: bool = True) -> Iterator[Table]:
    """Those of each run, which of several each table names."""
    for run in runs:
        named = f"{run.name}: " if len(runs) > 1 else ""
        yield from (replace(table, title=f"{named}{table.title}") for table in _of(run, wanted, asked))


def pasted(runs: list[Run], most: int = PASTED, most_loss: float | None = None) -> Iterator[str]:
    """All of it as Markdown, as far as it fits into so many bytes: first the answers, then the tables in the order of
    what they say; says what it leaves out.

    Args:
        most_loss: as of ``answer``.
    """
    size, left = 0, []
    for part in _parts(runs, most_loss):
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


def _parts(runs: list[Run], most_loss: float | None) -> Iterator[str]:
    for run in runs:
        lines = [f"- {line}" for line in (*answer(run, most_loss), *remarks(run))]
        yield "\n".join([f"## {run.path} ({run.taken[:16]})", "", *lines, ""])
        if (asked := verdict_table(run)) is not None:
            yield markdown(asked)
    yield from map(markdown, beside(runs))
    yield from map(markdown, _of_each(runs, ALL, asked=False))


def _write(console: Console, folder: Path, runs: list[Run], most_loss: float) -> int:
    # Imported here, for what it takes is an extra that the answer does without.
    write_folder = importlib.import_module("blockshock.report.folder").write_folder
    try:
        page = write_folder(folder, runs, console_on(sys.stderr), most_loss)
    except OSError as error:
        print(f"cannot write the report to {folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    console.print(f"Written: {page}")
    return 0
