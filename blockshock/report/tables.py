"""A table before anybody shows it: what its columns are called, how their numbers read, and the numbers themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from blockshock.saved import is_dense

Cell = str | int | float | bool | None
Info = dict[str, Any]
POINT = ("workload", "N", "K", "B", "dtype")
YARDSTICKS = ("group", "one")
"""Spans of which the first dense alternative that ran is what all rows are set beside, as the best one there is."""
LOSES = {"loses": ".3f"}
"""A column of what a row's output loses, in the tables that have such rows."""
MARKS = {"clock": "†", "wrong": "‡", "saved_as": "§", "believed": "§"}
"""What a row may say, and the mark that it has behind its name then."""
FOOTNOTES = {
    "clock": "{0} during {1}",
    "wrong": "{1}: {0}",
    "saved_as": "computed anew from its samples; its file says {0}: {1}",
    "believed": "{0}: {1}",
}
"""Of what it says, and the rows that say so."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its heading, unit included.
        format: of its numbers, as ``format`` takes it; empty for a column of text.
    """

    name: str
    format: str = ""

    def text(self, cell: Cell) -> str:
        """The cell as it is read; what is absent is a dash, a difference that must not be overlooked is loud."""
        if cell is None:
            return "–"
        if isinstance(cell, bool):
            return "yes" if cell else "NO"
        return format(cell, self.format) if self.format and not isinstance(cell, str) else str(cell)


@dataclass
class Table:
    """A table.

    Attributes:
        title: what it shows.
        section: the part of the report that it belongs to, of ``sections.SECTIONS``.
        columns: of each row's cells; none in a table that has only something to note.
        rows: cells as numbers, not as text.
        notes: lines below it.
    """

    title: str
    section: str
    columns: tuple[Column, ...] = ()
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        """The cells as they are read."""
        return [[column.text(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]


def columns(**formats: str) -> tuple[Column, ...]:
    """Columns by name; an underscore in a name stands for a blank."""
    return tuple(Column(name.replace("_", " "), form) for name, form in formats.items())


def point(row: Info) -> tuple[Any, ...]:
    """What two rows must share to be compared line by line."""
    return tuple(row[key] for key in POINT)


def mark(row: Info) -> str:
    """What goes behind a row's name: the machine was suspended or its clock was set while it was measured, its output
    is wrong, or its file says something else than its samples do, or has none to say so."""
    marks = "".join(dict.fromkeys(sign for key, sign in MARKS.items() if row.get(key)))
    return f" {marks}" if marks else ""


def footnotes(rows: list[Info]) -> list[str]:
    """What the marks stand for, each reason once."""
    named: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        place = f"{row['label']} N={row['N']} K={row['K']} B={row['B']}"
        for key in filter(row.get, MARKS):
            name = f"{row['label']} {row['dtype']}" if key == "wrong" else place
            named.setdefault((key, row[key]), []).append(name)
    return [
        f"{MARKS[key]} {FOOTNOTES[key].format(reason, ', '.join(dict.fromkeys(names)))}"
        for (key, reason), names in sorted(named.items(), key=lambda entry: list(MARKS).index(entry[0][0]))
    ]


def ratio(value: float, base: float | None) -> float | None:
    """Value over base, or None where there is no base."""
    return value / base if base else None


def spread(row: Info) -> float | None:
    """Half of how far the medians of its builds lie apart, over the median of all; None of a single build."""
    builds = row.get("builds_p50_ms") or ()
    return ratio((max(builds) - min(builds)) / 2, row["p50_ms"]) if len(builds) > 1 else None


def yardsticks(rows: Iterable[Info]) -> list[str]:
    """Labels of the dense alternatives that rows are set beside everywhere: the first of each span, as they come."""
    first: dict[str, str] = {}
    for row in filter(is_dense, rows):
        first.setdefault(row["span"], row["label"])
    return [first[span] for span in YARDSTICKS if span in first]


def lossy(rows: Iterable[Info]) -> tuple[Column, ...]:
    """A column for what the rows' outputs lose, if any of them has weights of its own."""
    return columns(**LOSES) if any("loses" in row for row in rows) else ()


def loses(table: Table, row: Info) -> tuple[Cell, ...]:
    """The cell of that column, where the table has it."""
    has = any(column.name in LOSES for column in table.columns)
    return (known(row.get("loses", {}).get("output_error")),) if has else ()


def known(share: float | None) -> float | None:
    """None in place of NaN too, of what has no parts to lose: an output that is all zeros."""
    return None if share is None or math.isnan(share) else share


def mib(size: float | None) -> float | None:
    """Bytes as MiB."""
    return None if size is None else size / 2**20


def slug(text: str) -> str:
    """A file name, or a name in a page, out of any text: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("÷", "over").replace("%", "percent")).strip("-") or "report"
