"""How near what is asked about comes to what this machine can do at best, and where the time goes that is beyond."""

from __future__ import annotations

from collections.abc import Iterator

from blockshock.report.tables import Info
from blockshock.saved import PHASES, section_of, sound

LEAST_N, LEAST_B = 8192, 256
"""Smaller points are bound by launches and by the collective, which the method does not own."""
TARGET = 0.85
WORST = 3
"""How many points below the target are named, of a single label; the table has them all."""


def limit_lines(infos: list[Info]) -> Iterator[str]:
    """One line a phase and label, where a run has limits: of the whole call, as every table has it."""
    for section in PHASES.values():
        rows = [row for row in infos if section_of(row) == section and _judged(row)]
        automatic = {row["method"] for row in rows if _is_automatic(row)}
        labels = dict.fromkeys(row["label"] for row in rows if _is_automatic(row) or row["method"] not in automatic)
        for label in labels:
            yield _line(
                section, label, [row for row in rows if row["label"] == label], WORST if len(labels) == 1 else 1
            )


def _is_automatic(row: Info) -> bool:
    return bool(row["picks"].get("kernel", "").startswith("auto"))


def _judged(row: Info) -> bool:
    ours = row["role"] == "subject" and sound(row)
    return ours and row["N"] >= LEAST_N and row["B"] >= LEAST_B and limited(row)


def limited(part: Info) -> bool:
    """Whether the limit of a pass, or of a part of it, is known: it is not where a ceiling could not be measured."""
    return part.get("of_limit") is not None and part.get("limit_ms") is not None


def _line(section: str, label: str, rows: list[Info], named: int) -> str:
    shares = [row["of_limit"] for row in rows]
    of = f"over {len(rows)} points" if len(rows) > 1 else "at the one point"
    reached = f"{'–'.join(dict.fromkeys(f'{share:.0%}' for share in (min(shares), max(shares))))} of its limit {of}"
    below = sorted((row for row in rows if row["of_limit"] < TARGET), key=lambda row: row["of_limit"])
    told = f"{section}, {label} (N ≥ {LEAST_N}, B ≥ {LEAST_B}): {reached}"
    if not below:
        return f"{told}; nowhere below {TARGET:.0%}"
    more = "; the table has the rest" if len(below) > named else ""
    return f"{told}; below {TARGET:.0%} at {len(below)}: {'; '.join(map(_loss, below[:named]))}{more}"


def _loss(row: Info) -> str:
    """A point, what it takes beyond the limit, and how its stages share the time: they have rounds of their own."""
    optimizer = f" {row['optimizer']}" if row.get("optimizer") else ""
    at, beyond = f"N={row['N']} B={row['B']}{optimizer}", row["p50_ms"] - row["limit_ms"]
    stages = {name: times["p50_ms"] for name, times in row["stages"].items()}
    whole = sum(stages.values())
    spent = ", ".join(f"{name} {ms / whole:.0%}" for name, ms in stages.items() if whole > 0)
    return f"{at}: {row['of_limit']:.0%}, {beyond:.4f} ms beyond it{f'; of its stages {spent}' if spent else ''}"
