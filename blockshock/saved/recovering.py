"""How a journal becomes an ordinary saved run, and which one was last saved of it. Never imports torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockshock.saved.journal import METRICS, NoJournal, hold, next_run, read_journal, write_whole
from blockshock.saved.results import read_json

_RECOVERED = "recovered"


def recovered(folder: Path) -> Path | None:
    """The run that was saved of all that a journal holds, if it is still there."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        made = read_json((folder / _RECOVERED).read_bytes())
        if made == _made(folder, path := folder.parent.parent / made["run"], _size(folder)) and path.exists():
            return path
    return None


def note_saved(folder: Path, path: Path) -> None:
    """Keep that all that a journal holds is saved in that run, which lies beside it."""
    with suppress(OSError):
        _note(folder, path, _size(folder))


def _note(folder: Path, path: Path, size: int) -> None:
    with suppress(OSError, ValueError):  # what was asked for is there
        write_whole(folder / _RECOVERED, json.dumps(_made(folder, path, size)))


def _made(folder: Path, path: Path, size: int) -> dict[str, Any]:
    """What is kept of a run that was saved of a journal, and of how much of it."""
    return {"run": str(path.resolve().relative_to(folder.resolve().parent.parent)), "bytes": size}


def _size(folder: Path) -> int:
    return (folder / METRICS).stat().st_size


def is_running(folder: Path) -> bool:
    """Whether a session still writes to a journal, as far as that can be told here."""
    try:
        held = hold(folder)
    except NoJournal:
        return True
    if held is not None:
        held.release()
    return False


def recover(folder: Path) -> Path:
    """Write what a journal holds as an ordinary saved run, whole or not at all; where it is.

    Raises:
        NoJournal: there is no journal in that folder, or no benchmark in it.
        OSError: the run cannot be written.
    """
    journal = read_journal(folder)
    if not journal.benchmarks:
        raise NoJournal(f"{folder}: no benchmark finished in this session")
    session = journal.session
    machine_info = session["machine_info"]
    if journal.ceilings:
        machine_info["blockshock"] = {**machine_info.get("blockshock", {}), "ceilings": journal.ceilings}
    saved = {
        "machine_info": machine_info,
        "commit_info": session["commit_info"],
        "benchmarks": list(journal.benchmarks.values()),
        "datetime": session["datetime"],
        "version": session["version"],
    }
    runs = folder.parent.parent / session["machine_id"]
    runs.mkdir(parents=True, exist_ok=True)
    path = next_run(runs, "recovered")
    write_whole(path, json.dumps(saved, indent=4))
    _note(folder, path, journal.size)
    return path
