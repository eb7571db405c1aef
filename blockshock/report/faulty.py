"""What of a run is wrong, and where; and what is known of one of which nothing can be said to pay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from blockshock.report.losing import lost
from blockshock.report.points import place_of
from blockshock.report.tables import Info
from blockshock.saved import PASSES as LIMIT
from blockshock.saved import (
    PHASES,
    dense_beside,
    faults,
    in_formats_alone,
    is_dense,
    or_inf,
    section_of,
    several,
    sound,
    was_checked,
)

MOST_ROWS, MOST_POINTS = 4, 3
"""How many wrong rows, and of each how many points, are named."""
NOTHING_BESIDE = "nothing that is asked about was timed beside a dense alternative"
ADD_DENSE = "add a dense row in format plain (a dense one in --methods, plain in --formats)"


def wrong_lines(infos: list[Info]) -> Iterator[str]:
    """Each row that failed a check: at which points, and by what at the first of them."""
    checked: dict[str, list[Info]] = defaultdict(list)
    for info in filter(was_checked, infos):
        checked[info["label"]].append(info)
    failed = {label: [info for info in rows if faults(info)] for label, rows in checked.items()}
    ranked = sorted(filter(failed.get, failed), key=lambda label: -len(failed[label]))
    for label in ranked[:MOST_ROWS]:
        rows = failed[label]
        places = list(dict.fromkeys(map(at, rows)))
        more = [f"{len(places) - MOST_POINTS} more"] if len(places) > MOST_POINTS else []
        where, why = "; ".join(places[:MOST_POINTS] + more), faults(rows[0])[0]
        yield f"WRONG: {label} in {len(rows)} of {several(len(checked[label]), 'check')}, at {where}: {why}"
    if others := [f"{label} in {len(failed[label])} of {len(checked[label])}" for label in ranked[MOST_ROWS:]]:
        yield f"WRONG too: {', '.join(others)}"


def at(info: Info) -> str:
    """The point of a row, in short."""
    return " ".join(
        filter(
            None,
            (info["workload"], f"{info['N']}×{info['K']} B={info['B']}", info["dtype"], info.get("optimizer")),
        )
    )


def add_dense(row: Info, beside: Iterable[Info]) -> str:
    """What to add where none of the rows beside this one is the dense alternative that it is to be compared with."""
    beside = list(beside)
    if methods := dict.fromkeys(info["method"] for info in in_formats_alone(beside, row)):
        return f"{', '.join(methods)} did not run in format plain: add plain to --formats"
    if dense := dense_beside(beside, row):
        return "all of those are WRONG" if all(info.get("wrong") for info in dense) else "they share no point"
    names = row.get("rivals") or {}  # which files of before did not say
    return f"add a dense row to --methods ({', '.join(names)})" if names else ADD_DENSE


def unpaired(infos: list[Info], compared: Collection[tuple[str, str]]) -> Iterator[str]:
    """Methods that were timed and stand beside no dense alternative at any point, and what to add for it; none of a
    run of which `untimed` says that.

    Args:
        compared: methods and sections that do.
    """
    for why, uses in _lacking(infos, compared).items():
        yield f"{', '.join(uses)}: timed beside no dense alternative: {why}"


def _lacking(infos: list[Info], compared: Collection[tuple[str, str]] = ()) -> dict[str, list[str]]:
    """Methods by what to add, of which nothing stands beside a dense alternative."""
    timed: dict[Any, list[Info]] = defaultdict(list)
    asked: dict[tuple[str, str], list[Info]] = defaultdict(list)
    for info in infos:
        if (section := section_of(info)) is not None and section in PHASES.values():
            timed[place_of(section, info)].append(info)
            if info["role"] == "subject" and sound(info) and (info["method"], section) not in compared:
                asked[info["method"], section].append(info)
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for (method, section), rows in asked.items():
        there = [info for row in rows for info in timed[place_of(section, row)]]
        others = [info for (of, *_), some in timed.items() if of == section for info in some]
        found[add_dense(rows[0], there if in_formats_alone(there, rows[0]) else others)][method] = None
    return {why: list(methods) for why, methods in found.items()}


def untimed(infos: list[Info]) -> Iterator[str]:
    """Of a run that compares no times: why, what was nearest to being wrong, and what is lost."""
    timed = [info for info in infos if section_of(info) in PHASES.values()]
    if timed:
        yield _why_not(timed)
    kinds: dict[str, tuple[str, Any]] = {
        "worst_weight_share": ("farthest from dense training", lambda info: info["worst_weight_share"]),
        "worst_drift": ("fed back to itself, the largest error", lambda info: info["worst_drift"] / LIMIT),
        "error_ratio": ("largest error", lambda info: info["error_ratio"] / (info.get("error_ratio_limit") or LIMIT)),
    }
    for kind, (what, share) in kinds.items():
        rows = [
            info
            for info in infos
            if kind in info and was_checked(info) and (kind != "error_ratio" or "worst_drift" not in info)
        ]
        if rows:
            worst = max(rows, key=lambda info: or_inf(share(info)))
            said = what.replace("dense training", "its recipe") if worst["promise"] == "learns" else what
            yield f"{said}: {share(worst):.0%} of what passes, {worst['label']}, {at(worst)}"
    asked = [info for info in infos if info["role"] == "subject" and "loses" in info]
    for method in dict.fromkeys(info["method"] for info in asked):
        yield f"{method} loses {lost([info for info in asked if info['method'] == method])}"


def _why_not(timed: list[Info]) -> str:
    """Why none of what was timed stands beside a dense alternative."""
    asked = [info for info in timed if info["role"] == "subject"]
    dense = list(filter(is_dense, timed))
    for rows, what, then in (
        (asked, "what is asked about was timed", "none of its times counts"),
        (dense, "a dense alternative was timed", "there is none to set anything beside"),
    ):
        if rows and all(info.get("wrong") for info in rows):
            return f"{what} ({several(len(rows), 'result')}), and all of it is WRONG: {then}"
    if not asked:
        return f"{NOTHING_BESIDE}: add a method that is asked about"
    lacking = _lacking(timed)
    told = (why if len(lacking) == 1 else f"{', '.join(methods)}: {why}" for why, methods in lacking.items())
    return f"{NOTHING_BESIDE}: {'; '.join(told)}"
