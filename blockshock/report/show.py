"""Tables as text: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

from rich.console import Console

from blockshock.report.comparison import comparison
from blockshock.report.plain import Plain
from blockshock.report.tables import Table
from blockshock.saved import settled

WIDTH = 1000
"""Of the console, more than any table needs: rich cuts columns that do not fit, a terminal or a log loses none."""


def print_comparison(records: list[dict[str, Any]], file: IO[str]) -> None:
    """Print the comparison at the end of a run: of ``{"group": …, "extra_info": …}`` of each benchmark."""
    print_tables(console_on(file), comparison(settled(records)), markdown=False)


def console_on(file: IO[str]) -> Console:
    """A console that shows text as it is: what looks like markup in a run is none, and what the file's encoding lacks
    is written plainly."""
    return Console(file=cast(IO[str], Plain(file)), width=WIDTH, highlight=False, markup=False, emoji=False)


def print_tables(console: Console, tables: Iterable[Table], markdown: bool) -> None:
    """Print tables, each below its title; as Markdown they are to be pasted, not to be read in a terminal."""
    for table in tables:
        if markdown:
            console.out(
                "\n".join((f"### {table.title}\n", *_markdown(table), *(f"- {note}" for note in table.notes), ""))
            )
            continue
        console.print(table.title, style="bold")
        if table.columns:
            header, *lines = _aligned(table)
            console.print(f" {header}\n {'─' * len(header)}", style="bold")
            console.out("\n".join(f" {line}".rstrip() for line in lines))
        console.out("\n".join((*(f"  {note}" for note in table.notes), "")))


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
