"""What fits on a screen: of a run the answer and the verdicts, of several what changed; and where more is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from blockshock.report.across import SAME, UNDECIDED, across, unlike
from blockshock.report.answer import answer, hardware, verdict_table
from blockshock.report.apart import told_apart
from blockshock.report.faulty import wrong_lines
from blockshock.report.remarks import remarks, untried
from blockshock.report.show import GAP, fitted
from blockshock.report.spreads import spreads
from blockshock.report.tables import Table
from blockshock.saved import Run, several

WIDTH, LINES = 120, 60
NARROWEST, NAME = 60, 12
"""Of a terminal, and of the names in it."""
OVER = "÷ best dense ("
LEGEND = "÷: the median over the points and their range; below one is faster"
"""What is said of the numbers of uses."""
WIDE = 100
"""Characters from which on a table of verdicts is read more easily than sentences."""
NOTHING = "–"
"""A cell of a table that has nothing to say."""
QUOTED = re.compile(r"'[^']*'")
"""A path with blanks, as a shell takes it."""
FEW = 6
"""Lines that remarks have in any case."""
ASKED = 0.4
"""Of the lines that there are, what the verdicts have in any case."""


def fitting(columns: int) -> int:
    """How wide to write for a terminal of so many columns."""
    return max(NARROWEST, min(columns, WIDTH))


def of_run(
    run: Run, title: str, more: str, width: int = WIDTH, lines: int = LINES, most_loss: float | None = None
) -> list[str]:
    """The answer, the verdicts and what a reader must know; at most so many lines of so many characters.

    Args:
        more: where there is more.
        most_loss: as of ``answer``.
    """
    first, *uses = answer(run, most_loss) or ["nothing in it can be shown"]
    head = [*_wrapped(filter(None, [title]), width, whole=True), *_wrapped([first], width), ""]
    end = ["", *_wrapped([more], width, whole=True)]
    legend = [LEGEND] if any(OVER in line for line in uses) else []
    said, room = _wrapped([*uses, *legend], width), lines - len(head) - len(end)
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
        f"{of}: {asked}? {answer} (÷ {rivals}: {ratio}{_losing(*loses)}; points: {points})"
        for asked, of, answer, points, ratio, *loses, rivals in table.texts()
    ]
    return _wrapped(rows, width)


def _losing(loses: str = NOTHING) -> str:
    return "" if loses == NOTHING else f"; loses {loses}"


def of_runs(runs: list[Run], more: str, width: int = WIDTH, lines: int = LINES) -> list[str]:
    """How each run after the first differs from it: the uses, then the benchmarks, least those that did not change."""
    titles = [f"{run.name}: {line}" for run in runs for line in wrong_lines(run.infos)]
    dated = [(run, f" ({run.taken[:16]})" if run.taken else "") for run in runs if run.records]
    titles += [f"{run.name}{date}: {hardware(run)}" for run, date in dated]
    titles += [f"{run.name}: {line}" for run in runs for line in untried(run)]
    titles += unlike(runs)
    shown, end = _wrapped(titles, width), ["", *_wrapped(filter(None, [more]), width, whole=True)]
    uses = _wrapped(spreads(runs), width)
    shown = _cut([*shown, *([""] if uses else []), *uses], lines // 3)
    tables = [across([runs[0], run], judged) for run in runs[1:] for judged in (False, True)]
    tables = [table for table in tables if len(table.rows) > 0] or tables[:1]
    room = (lines - len(shown) - len(end)) // len(tables)
    for table in tables:
        shown += _changes(table, width, room)
    return [*shown[: lines - len(end)], *end]


def _changes(table: Table, width: int, room: int) -> list[str]:
    """The table of changes, less what did not; where it is too long its middle, which changed least, is left out."""
    notes = _wrapped(table.notes, width)
    title = ["", *_wrapped([table.title], width)]
    if not table.rows:
        return [*title, *notes]
    *every, mean = table.texts()
    changed = [cells for cells in every if cells[3] not in (SAME, UNDECIDED)]
    undecided = sum(cells[3] == UNDECIDED for cells in every)
    same, of = len(every) - len(changed) - undecided, len(every)
    open_ = f"{undecided} of {of} undecided" if undecided else ""
    if not changed:
        alike = f"none of {of} differs" if not undecided else f"{same} of {of} do not differ" if same else ""
        told = ", ".join(filter(None, [alike, open_, f"geomean {mean[3]}"]))
        return [*title, *_wrapped([f"{told}: --tables across has them"], width), *notes]
    common, names = told_apart([name for name, *_ in changed])
    title += _wrapped([f"all of these: {common}"] if common else [], width)
    told = ", ".join(filter(None, [f"{same} of {of} do not differ" if same else "", open_]))
    rest = [f"{told}: --tables across has them"] if told else []
    cells = [[name, *rest] for name, (_, *rest) in zip(names, changed, strict=True)]
    shown = [[column.name for column in table.columns], *cells, mean]
    if all(row[4] == column.text(None) for column in table.columns[4:] for row in shown[1:]):
        shown = [row[:4] for row in shown]  # no interval in any
    (header,), *rows = _rows(shown, width)
    space = room - len(title) - len(notes) - len(rest) - 1
    return [*title, header, *_ends(rows, space), *rest, *notes]


def _ends(rows: list[list[str]], space: int) -> list[str]:
    """The lines of the first rows and of the last ones, as many as there is space for; the last of all is the mean."""
    *changed, mean = rows
    first: list[str] = []
    last = mean
    cut = sum(map(len, changed)) > space - len(mean)
    space -= len(mean) + cut
    for turn in range(len(changed)):
        row = changed[-1 if turn % 2 else 0]
        if (space := space - len(row)) < 0:
            break
        changed.pop(-1 if turn % 2 else 0)
        first, last = (first, [*row, *last]) if turn % 2 else ([*first, *row], last)
    more = [f"… {len(changed)} more between these: --tables across"] if changed else []
    return [*first, *more, *last]


def _rows(texts: list[list[str]], width: int) -> list[list[str]]:
    """The lines of each row: a name that is too long goes on below itself, for both its ends tell."""
    wide = [max(map(len, column)) for column in zip(*texts, strict=True)]
    wide[0] = max(min(wide[0], width - sum(wide[1:]) - GAP * (len(wide) - 1)), NAME)
    found = []
    for name, *cells in texts:
        first, *more = textwrap.wrap(name, wide[0], subsequent_indent="  ") or [""]
        row = [f"{first:<{wide[0]}}", *(f"{cell:>{w}}" for cell, w in zip(cells, wide[1:], strict=True))]
        found.append([(" " * GAP).join(row), *more])
    return found


def _wrapped(lines: Iterable[str], width: int, whole: bool = False) -> list[str]:
    """The lines, none longer than the width, those that go on indented.

    Args:
        whole: words stay so, however long and whatever they hold, and so does what is quoted: a path is to be pasted.
    """
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent="  ", break_long_words=not whole, break_on_hyphens=not whole
    )
    if whole:
        lines = (QUOTED.sub(lambda quoted: quoted[0].replace(" ", "\0"), line) for line in lines)
    return [part.replace("\0", " ") for line in lines for part in wrapper.wrap(line) or [""]]


def _cut(lines: list[str], room: int) -> list[str]:
    """As many as there is room for; the last says how many there are more. What goes on in them is left out whole,
    unless little would stay."""
    if len(lines) <= room:
        return lines
    shown = max(room - 1, 0)
    begun = max((place for place, line in enumerate(lines[: shown + 1]) if not line.startswith(" ")), default=0)
    shown = begun if 2 * begun >= room else shown
    return [*lines[:shown], f"… {several(len(lines) - shown, 'more line')}: --tables"][: max(room, 0)]
