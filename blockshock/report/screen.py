"""What fits on a screen: of a run the answer and the verdicts, of several what changed; and where more is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from blockshock.report.across import across, spreads
from blockshock.report.answer import answer, hardware, verdict_table
from blockshock.report.remarks import remarks
from blockshock.report.show import fitted
from blockshock.report.tables import Table
from blockshock.saved import Run

WIDTH, LINES = 120, 60
WIDE = 100
"""Characters from which on a table of verdicts is read more easily than sentences."""
FEW = 6
"""Lines that remarks have in any case."""
ASKED = 0.4
"""Of the lines that there are, what the verdicts have in any case."""


def of_run(run: Run, title: str, more: str, width: int = WIDTH, lines: int = LINES) -> list[str]:
    """The answer, the verdicts and what a reader must know; at most so many lines of so many characters.

    Args:
        more: where there is more.
    """
    first, *uses = answer(run) or ["nothing in it can be shown"]
    head, end = [*_wrapped(filter(None, [title, first]), width), ""], ["", *_wrapped([more], width)]
    said, room = _wrapped(uses, width), lines - len(head) - len(end)
    table, notes = verdict_table(run), _wrapped(remarks(run), width)
    asked = ["", *_asked(table, width), *_wrapped(table.notes, width)] if table else []
    notes = _cut(["", *notes] if notes else [], max(room - len(said) - len(asked), FEW))
    asked = _cut(asked, max(room - len(said) - len(notes), int(room * ASKED)))
    body = [*_cut(said, room - len(asked) - len(notes)), *asked, *notes]
    body = body[1:] if body[:1] == [""] else body  # no use: a blank line is there already
    return [*head, *body, *(end if body else end[1:])]


def _asked(table: Table, width: int) -> list[str]:
    """The verdicts as a table, or where that would be mostly gaps as a sentence each."""
    if width >= WIDE:
        return fitted(table, width)
    rows = [
        f"{of}: {asked}? {answer} (÷ {rivals}: {ratio}; points: {points})"
        for asked, of, answer, points, ratio, rivals in table.texts()
    ]
    return _wrapped(rows, width)


def of_runs(runs: list[Run], more: str, width: int = WIDTH, lines: int = LINES) -> list[str]:
    """How each run after the first differs from it: the uses, then the benchmarks, least those that did not change."""
    titles = [f"{run.name} ({run.taken[:16]}): {hardware(run)}" for run in runs if run.records]
    shown, end = _wrapped(titles, width), ["", *_wrapped(filter(None, [more]), width)]
    shown = _cut([*shown, "", *_wrapped(spreads(runs), width)], lines // 3)
    tables = [across([runs[0], run], judged) for run in runs[1:] for judged in (False, True)]
    tables = [table for table in tables if len(table.rows) > 0] or tables[:1]
    room = (lines - len(shown) - len(end)) // len(tables)
    for table in tables:
        shown += _changes(table, width, room)
    return [*shown[: lines - len(end)], *end]


def _changes(table: Table, width: int, room: int) -> list[str]:
    """The table of changes; where it is too long the middle of it, which changed least, is left out."""
    notes = _wrapped(table.notes, width)
    title = ["", *_wrapped([table.title], width)]
    if not table.rows:
        return [*title, *notes]
    header, *rows = _one_line_each(table, width)
    space = room - len(title) - len(notes) - 1
    if len(rows) > space:
        half = max((space - 2) // 2, 1)
        middle = len(rows) - 2 * half - 1
        rows = [*rows[:half], f"… {middle} more between these: --tables across", *rows[-half - 1 :]]
    return [*title, header, *rows, *notes]


def _one_line_each(table: Table, width: int) -> list[str]:
    """Names are cut in their middle, where they are too long: both ends tell."""
    texts = [[column.name for column in table.columns], *table.texts()]
    wide = [max(map(len, column)) for column in zip(*texts, strict=True)]
    wide[0] = max(min(wide[0], width - sum(wide[1:]) - 2 * (len(wide) - 1)), 20)
    return [
        "  ".join(
            [f"{_short(name, wide[0]):<{wide[0]}}", *(f"{cell:>{w}}" for cell, w in zip(cells, wide[1:], strict=True))]
        )
        for name, *cells in texts
    ]


def _short(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    return f"{name[: (width - 1) // 2]}…{name[len(name) - width // 2 :]}"


def _wrapped(lines: Iterable[str], width: int) -> list[str]:
    """The lines, none longer than the width, those that go on indented."""
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ") or [""]]


def _cut(lines: list[str], room: int) -> list[str]:
    """As many as there is room for; the last says how many there are more."""
    if len(lines) <= room:
        return lines
    return [*lines[: max(room - 1, 0)], f"… {len(lines) - max(room - 1, 0)} more lines: --tables"][: max(room, 0)]
