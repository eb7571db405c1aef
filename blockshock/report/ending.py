"""The end of a session: the answer, last, as it fits on a screen; above it the tables, where no file keeps them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import IO

from blockshock.report import screen
from blockshock.report.comparison import comparison
from blockshock.report.show import console_on, print_tables
from blockshock.saved import STORAGE, Run

LINES = 34
"""So that what pytest says above and below still fits on a screen of forty."""


UNSAVED = "--benchmark-autosave saves a run"
DISTRIBUTED = "without -n, --benchmark-autosave saves a run"
"""pytest-benchmark keeps nothing of what workers measure."""


def print_ending(
    run: Run,
    before: list[Run],
    saved: Path | None,
    file: IO[str],
    unsaved: str = UNSAVED,
    most_loss: float | None = None,
) -> None:
    """Print it.

    Args:
        before: runs that this one is to be compared with.
        saved: its file, if it was saved.
        unsaved: what to say where it was not.
        most_loss: as of ``answer``.
    """
    console, width = console_on(file), screen.fitting(shutil.get_terminal_size().columns)
    if saved is None:
        print_tables(console, comparison(run.records))
    for other in before:
        console.out("\n".join(screen.of_runs([other, run], "", width, screen.LINES)))
    named = saved and ("" if saved.parts[0] == STORAGE.name else f" {shlex.quote(str(saved))}")
    more = f"tables: python -m blockshock report{named} --tables" if saved else unsaved
    console.out("\n".join(screen.of_run(run, "", more, width, LINES, most_loss)))
    if saved is not None:
        console.out(f"Saved: {saved}")
