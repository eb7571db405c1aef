"""Which files of a folder are the parts of one run, and that run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from blockshock.saved.how import HOW, ways
from blockshock.saved.run import WHERE, NotARun, Run, differences, shown
from blockshock.saved.words import several


def joined(folder: Path, parts: list[Run], notes: list[str]) -> Run:
    """The parts as one run; a test that several measured is taken from the last of them.

    Args:
        notes: of what else lies in the folder.

    Raises:
        NotARun: they are several runs: of unlike machines or versions, timed in unlike ways or on unlike devices, of
            rows that unlike numbers of ranks share, or some of what one measured was measured again at another commit.
            Where all of it was, it is replaced.
    """
    parts = sorted(parts, key=lambda part: part.taken)
    last = {record["name"]: (part, record) for part in parts for record in part.records}
    if twice := sum(len(part.records) for part in parts) - len(last):
        notes.append(f"{several(twice, 'result was', 'results were')} measured more than once: shown is the last")
    if why := _unlike(parts, {name: owner.path for name, (owner, _) in last.items()}):
        names = _names(folder, parts)
        told = f"{several(len(names), 'run')}, not the parts of one: {why}"
        raise NotARun(f"{folder} holds {told}. Name one of {', '.join(names)}")
    parts = [part for part in parts if not part.records or any(owner is part for owner, _ in last.values())]
    notes += [note for part in parts for note in part.notes]
    notes += [f"parts differ in their {told}" for told in differences(parts)]
    return Run(
        folder,
        parts[0].taken,
        _machine(parts),
        [record for _, record in last.values()],
        dict(sum((Counter(part.left_out) for part in parts), Counter[str]())),
        notes,
        parts[-1].taken,
        [odd for part in parts for odd in part.odd],
    )


def _unlike(parts: list[Run], owners: dict[str, Path]) -> str:
    """Why they are no parts of one run; empty where they are. Owners: of each test whose result counts."""
    if unlike := [what for what, name in WHERE.items() if len(_found(parts, name)) > 1]:
        return f"they differ in their {', '.join(unlike)}"
    if len(counts := _ranks(parts)) > 1:
        return f"they differ in their ranks ({' and '.join(map(str, counts))}), and are reported beside each other"
    infos = [info for part in parts for info in part.infos]
    for name, called in HOW.items():
        if name != "ranks" and len(said := ways(infos, name)) > 1:
            return f"they differ in their {called} ({' and '.join(said)})"
    commits = {part.path: part.machine.get("git_commit") for part in parts}
    for part in parts:
        found = dict.fromkeys(owners[record["name"]] for record in part.records)
        others = [path for path in found if commits[path] != commits[part.path]]
        if part.path in found and others:
            return f"{others[0].name} measured a part of {part.path.name} again at another commit"
    return ""


def _found(runs: list[Run], name: str) -> list[str]:
    """What the runs say of their machine, each value once; of those that say it."""
    return list(dict.fromkeys(shown(run.machine[name]) for run in runs if run.machine.get(name) is not None))


def _ranks(parts: list[Run]) -> list[int]:
    """How many ranks shared a row, in any of the parts: what runs on one device runs on one in all of them."""
    return sorted({info["ranks"] for part in parts for info in part.infos if info.get("span") != "one"})


def _names(folder: Path, parts: list[Run]) -> list[str]:
    """What may be named instead: files and folders in there, or where there is one folder alone what is in that."""
    below = [part.path.relative_to(folder).parts for part in parts]
    deep = 2 if len({names[0] for names in below}) == 1 else 1
    return sorted({str(folder.joinpath(*names[:deep])) for names in below})


def _machine(parts: list[Run]) -> dict[str, Any]:
    """Of the first, with all commits. Each part measured the ceilings anew, where it timed anything: its rows have
    their limits from those."""
    ceilings = [part.machine["ceilings"] for part in parts if "ceilings" in part.machine]
    commits = _found(parts, "git_commit")
    return (
        parts[0].machine
        | ({"ceilings": ceilings[-1]} if ceilings else {})
        | ({"git_commit": ", ".join(commits)} if commits else {})
    )
