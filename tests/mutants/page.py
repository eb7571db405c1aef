"""docs/mutants.md: what was found of the mutants, and the reason of each survivor that no test on a CPU can see."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from mutant import ROOT, WINGS, Mutant

FOUND, REASONS, PAGE = (ROOT / "docs" / f"mutants.{suffix}" for suffix in ("json", "toml", "md"))
LEAST = 0.9
"""Of the mutants that a CPU can see, the share that has to be killed."""
HEAD = """# Mutants

`tox run -e mutants` changes the package in one place at a time, and looks whether a test fails that can see the place.
Which lines is drawn by a hash, their changes are [cosmic-ray](https://cosmic-ray.readthedocs.io)'s. That command writes
this page; [mutants.toml](mutants.toml) keeps the reasons. A mutant that has one counts for nothing, and meets the tests
alone that start no other process.
"""


def reasons() -> list[dict[str, str]]:
    """Those that are kept."""
    kept: list[dict[str, str]] = tomllib.loads(REASONS.read_text(encoding="utf-8"))["reason"]
    return kept


def reason_of(file: str, text: str, change: str, why: list[dict[str, str]]) -> str | None:
    """Why no test on a CPU can see a change of a line, if that is known.

    A reason is for what it names: a file, a line by its text, what is in the line that it becomes.
    """
    _, _, now = change.partition(" → ")
    for one in why:
        if one.get("file", file) == file and one.get("line", text) == text and one.get("becomes", "") in now:
            return one["reason"]
    return None


def record(tried: list[tuple[Mutant, bool]], path: Path = FOUND) -> dict[str, Any]:
    """Save what came of the mutants of some wings in place of what is there of those; all that is there then."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for wing in {mutant.wing for mutant, _ in tried}:
        ours = [(mutant, killed) for mutant, killed in tried if mutant.wing == wing]
        alive = sorted((one.file, one.line, one.text, one.change) for one, killed in ours if not killed)
        found[wing] = {"tried": len(ours), "survived": alive}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def page(found: dict[str, Any], why: list[dict[str, str]]) -> tuple[str, float]:
    """The page, and the share of what a CPU can see that was killed."""
    wings, survivors, seen, killed = list[str](), list[str](), 0, 0
    for wing in (wing for wing in WINGS if wing in found):
        tried, alive, unseen = found[wing]["tried"], found[wing]["survived"], 0
        for file, line, text, change in alive:
            reason = reason_of(file, text, change, why)
            unseen += reason is not None
            cells = (f"{file}:{line}", f"`` {change} ``", reason or "**not known: it lacks a test**")
            survivors.append(_row(*cells))
        wings.append(_row(wing, tried, tried - len(alive), unseen, len(alive) - unseen))
        seen, killed = seen + tried - unseen, killed + tried - len(alive)
    share = killed / seen if seen else 1.0
    titles = _row("wing", "tried", "killed", "not to be seen on a CPU", "survived"), _row(*["---"] * 5)
    heads = _row("survivor", "the line, and what it became", "why"), _row(*["---"] * 3)
    tried = sum(wing["tried"] for wing in found.values())
    said = f"{tried} were tried. Of those that a CPU can see, {killed} of {seen} were killed ({share:.0%}).\n"
    return "\n".join([HEAD, said, *titles, *wings, "", *heads, *survivors, ""]), share


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
