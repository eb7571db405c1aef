"""Tables as text: for a terminal, and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import IO, cast

from rich.console import Console

from blockshock.report.plain import Plain
from blockshock.report.tables import Table

WIDTH = 1000
"""Of the console, more than any table needs: rich cuts columns that do not fit, a terminal or a log loses none."""
GAP, NARROWEST = 2, 12
"""Blanks between columns, and how narrow a column of text may get."""


def console_on(file: IO[str]) -> Console:
    """A console that shows text as it is: what looks like markup in a run is none, and what the file's encoding lacks
    is written plainly."""
    return Console(file=cast(IO[str], Plain(file)), width=WIDTH, highlight=False, markup=False, emoji=False)


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Print tables, each below its title, as wide as they are."""
    for table in tables:
        console.print(table.title, style="bold")
        if table.columns:
            header, *lines = _aligned(table)
            console.print(f" {header}\n {'─' * len(header)}", style="bold")
            console.out("\n".join(f" {line}".rstrip() for line in lines))
        console.out("\n".join((*(f"  {note}" for note in table.notes), "")))


def markdown(table: Table) -> str:
    """A table to be pasted, not to be read in a terminal."""
    return "\n".join((f"### {table.title}\n", *_markdown(table), *(f"- {note}" for note in table.notes), ""))


def fitted(table: Table, width: int) -> list[str]:
    """The table's lines, none longer than the width where that has room: cells of text go on below themselves."""
    rows = [[column.name for column in table.columns], *table.texts()]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [place for place, column in enumerate(table.columns) if not column.format]
    while sum(wide) + GAP * (len(wide) - 1) > width and any(wide[place] > NARROWEST for place in texts):
        wide[max(texts, key=wide.__getitem__)] -= 1
    sides = [">" if column.format else "<" for column in table.columns]
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, wide, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            line = (" " * GAP).join(f"{part:{side}{wide}}" for part, side, wide in zip(parts, sides, wide, strict=True))
            lines.append(line.rstrip())
    return lines


def _aligned(table: Table) -> Iterator[str]:
    """Lines of equal length. Laid out here, for rich takes ten times as long, seconds for a thousand benchmarks."""
    rows = [[column.name for column in table.columns], *table.texts()]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [">" if column.format else "<" for column in table.columns]
    for row in rows:
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, wide, strict=True))


def _markdown(table: Table) -> Iterator[str]:
    if table.columns:
        yield _piped(column.name for column in table.columns)
        yield _piped("---:" if column.format else "---" for column in table.columns)
        yield from map(_piped, table.texts())
        yield ""


def _piped(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
