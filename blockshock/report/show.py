"""Tables as text: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from blockshock.report.comparison import comparison
from blockshock.report.tables import Table

WIDTH = 1000
"""Of the console, more than any table needs: rich cuts columns that do not fit, a terminal or a log loses none."""


def print_comparison(records: list[dict[str, Any]], file: IO[str]) -> None:
    """Print the comparison at the end of a run; ``records`` as ``comparison`` takes them."""
    print_tables(console_on(file), comparison(records), markdown=False)


def console_on(file: IO[str]) -> Console:
    """A console that shows text as it is: what looks like markup in a run is none."""
    return Console(file=file, width=WIDTH, highlight=False, markup=False, emoji=False)


def print_tables(console: Console, tables: Iterable[Table], markdown: bool) -> None:
    """Print tables, each below its title; as Markdown they are to be pasted, not to be read in a terminal."""
    for table in tables:
        heading = f"### {table.title}\n" if markdown else table.title
        console.print(heading, style=None if markdown else "bold")
        if table.columns:
            console.print(_rich(table, markdown))
        for note in table.notes:
            console.print(f"- {note}" if markdown else f"  {note}")
        if markdown or not table.columns or table.notes:
            console.print()


def _rich(table: Table, markdown: bool) -> RichTable:
    style, padded = (box.MARKDOWN, True) if markdown else (box.SIMPLE_HEAD, False)
    shown = RichTable(box=style, pad_edge=padded)
    for column in table.columns:
        shown.add_column(column.name, justify="right" if column.format else "left", no_wrap=True)
    for cells in table.texts():
        shown.add_row(*(cell.replace("|", "\\|") if markdown else cell for cell in cells))
    return shown
