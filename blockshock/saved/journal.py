"""Journals of runs that did not end: what is in one, and which there are. Never imports torch.

A journal is a folder: ``session.json`` says what was run and where, ``metrics.jsonl`` has a line for each benchmark, on
the disk before the next one starts, and ``finished`` is there once the session ended by itself. Who writes to it holds
``running``, for as long as that process lives; ``recovered`` names the run that was last saved of it.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from blockshock.saved.fits import having, text
from blockshock.saved.results import STORAGE, read_json

SESSION, METRICS, FINISHED = "session.json", "metrics.jsonl", "finished"
_RUNNING = "running"


class NoJournal(ValueError):
    """A folder that is no journal, or none to be found; the message says what to do."""


@dataclass
class Journal:
    """What a session wrote before it ended.

    Attributes:
        session: what was run, and where.
        benchmarks: as pytest-benchmark saves them, by full name; the last of each.
        passed: full names of the tests that passed.
        ceilings: of the machine, if they were measured.
        size: bytes of what was read: a session that still runs writes more meanwhile.
    """

    folder: Path
    session: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    ceilings: dict[str, Any] | None = None
    size: int = 0


def is_session(found: Any) -> bool:
    """Whether this is what a session says of itself; the id of its machine names a folder, and no other one."""
    info = dict.fromkeys(("machine_info", "commit_info"), having())
    told = dict.fromkeys(("machine_id", "datetime", "version"), text)
    return having(**info, **told)(found) and re.fullmatch(r"[\w.+-]*\w", found["machine_id"]) is not None


def journals(storage: Path) -> Path:
    """Where the journals beside the saved runs are."""
    return storage / "journal"


def next_journal(storage: Path, name: str) -> Path:
    """The folder of a new journal. A number says which is the last: the wall clock may have stepped back since."""
    last = max((_place(folder)[0] for folder in journals(storage).glob("*")), default=0)
    return journals(storage) / f"{last + 1:04}_{name}"


def _place(folder: Path) -> tuple[int, str]:
    """Where a journal stands among others; those of before there were numbers begin with a date of eight digits."""
    number = folder.name.partition("_")[0]
    return (int(number) if number.isdecimal() and len(number) < 8 else 0, folder.name)


def read_session(folder: Path) -> dict[str, Any]:
    """What the session of a journal says of itself.

    Raises:
        NoJournal: there is none in that folder, or it says too little.
    """
    try:
        session = read_json((folder / SESSION).read_bytes())
    except (OSError, ValueError) as error:
        raise NoJournal(f"{folder} is no journal: {error}") from None
    if not is_session(session):
        raise NoJournal(f"{folder} is no journal: {SESSION} does not say what a session says")
    told: dict[str, Any] = session
    return told


def read_journal(folder: Path) -> Journal:
    """A journal. A last line that was cut off is left out: its benchmark had not finished.

    Raises:
        NoJournal: there is none in that folder.
    """
    journal = Journal(folder, read_session(folder))
    try:
        raw = (folder / METRICS).read_bytes()
    except OSError as error:
        raise NoJournal(f"{folder} is no journal: {error}") from None
    journal.size = len(raw)
    for line in raw.splitlines():
        try:
            entry = read_json(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if having(fullname=text)(entry.get("benchmark")):
            journal.benchmarks[entry["benchmark"]["fullname"]] = entry["benchmark"]
        if text(entry.get("passed")):
            journal.passed.add(entry["passed"])
        if isinstance(entry.get("ceilings"), dict):
            journal.ceilings = entry["ceilings"]
    return journal


def all_unfinished(storage: Path = STORAGE) -> tuple[list[Path], list[str]]:
    """Journals of sessions that did not end by themselves, the last first; and why what lies beside them is none."""
    found, passed_over = [], []
    for folder in sorted((path for path in journals(storage).glob("*") if path.is_dir()), key=_place, reverse=True):
        if (folder / FINISHED).exists():
            continue
        try:
            read_session(folder)
            if b'"benchmark"' not in (folder / METRICS).read_bytes():
                raise NoJournal(f"{folder}: no benchmark finished in this session")
        except (NoJournal, OSError) as error:
            passed_over.append(f"passed over: {error}")
        else:
            found.append(folder)
    return found, passed_over


def unfinished_below(storage: Path = STORAGE) -> tuple[list[Path], list[str]]:
    """Of a folder and of each storage below it, such as those of ``tox run -e full``, the last such journal; the last
    written first. With them, why what lies beside them is none.

    Raises:
        NoJournal: there is none.
    """
    found, passed_over = [], []
    for below in sorted({path.parents[2] for path in storage.rglob(f"{journals(Path()).name}/*/{SESSION}")}):
        folders, others = all_unfinished(below)
        found += folders[:1]
        passed_over += others
    if not found:
        none = f"no unfinished session in {storage} or below it: all that ran came to its end"
        raise NoJournal("\n".join([none, *passed_over]))
    found.sort(key=lambda folder: max(path.stat().st_mtime_ns for path in folder.iterdir()), reverse=True)
    return found, passed_over


def hold(folder: Path) -> FileLock | None:
    """What says that this process writes to a journal, for as long as it lives and keeps it; None where there is no
    such thing, on some file systems.

    Raises:
        NoJournal: another process does.
    """
    lock = FileLock(folder / _RUNNING)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise NoJournal(f"the session of {folder} still runs: wait for its end, or end it first") from None
    except (OSError, NotImplementedError):
        return None
    return lock


def next_run(folder: Path, name: str) -> Path:
    """The file of the next saved run in a folder; they are numbered as pytest-benchmark does."""
    numbers = [int(path.name[:4]) for path in folder.glob("[0-9][0-9][0-9][0-9]_*.json*")]
    return folder / f"{max(numbers, default=0) + 1:04}_{name}.json"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there with all of its content, or not at all, whatever happens meanwhile.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    # Beside it, for only within a file system is replacing atomic; hidden, and of no name that a run has.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # where the folder is gone, say: what was raised first is what went wrong
            temporary.unlink(missing_ok=True)
        raise
