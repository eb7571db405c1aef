"""The answer in a few lines: what ran, was it right, and does Block-Shock pay, forward, in training, and how surely?"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from blockshock.report.comparison import wide
from blockshock.report.tables import RIVALS, Info
from blockshock.saved import Run, best_dense, faults, section_of, sound, was_checked
from blockshock.saved.pairs import WIDE


def answer(run: Run) -> Iterator[str]:
    """Five lines, or none where there is nothing to say."""
    infos = run.infos
    if not infos:
        return
    machine, first = run.machine, infos[0]
    gpus = Counter(machine.get("gpus", []))
    where = ", ".join(f"{count} × {gpu}" for gpu, count in gpus.items()) if first["device"] == "cuda" else ""
    versions = [
        f"{name} {machine[name]}" for name in ("torch", "nccl", "cusparselt", "git_commit") if machine.get(name)
    ]
    on = where or machine.get("cpu") or "unnamed hardware"
    if (machines := machine.get("machines") or 1) > 1:
        on = f"{machines} machines, the first with {on}"
    ranks = max(info["ranks"] for info in infos)  # some of them run on one alone
    yield f"{ranks} {first['device'].upper()} ranks on {on}; {', '.join(versions) or 'versions unknown'}"
    yield _right(infos)
    yield _speed("forward", [info for info in infos if section_of(info) == "forward"])
    yield _speed("training step", [info for info in infos if section_of(info) == "training"])
    yield _judged([info for info in infos if "verdict" in info])


def _right(infos: list[Info]) -> str:
    """How many of those outputs and gradients that were checked are right; and all that failed, by name."""
    checked = [info for info in infos if "error_ratio" in info and was_checked(info)]
    failed = Counter(info["label"] for info in infos if was_checked(info) and faults(info))
    right = sum(not faults(info) for info in checked)
    told = f"right: {right} of {len(checked)} results that were checked" if checked else "right: nothing was checked"
    names = [f"{label} at {count}" for label, count in failed.most_common()]
    return f"{told}; WRONG: {', '.join(names)}" if names else told


def _speed(what: str, infos: list[Info]) -> str:
    """Ratios of the fastest Block-Shock row to its rivals, over all points where both were timed."""
    points: dict[tuple[Any, ...], list[Info]] = defaultdict(list)
    for info in infos:
        points[tuple(info.get(key) for key in ("workload", "N", "K", "B", "dtype", "optimizer"))].append(info)
    pairs = [(ours, rows) for rows in points.values() if (ours := _fastest(rows)) is not None]
    against = [(ours, best) for ours, rows in pairs if (best := best_dense(rows)) is not None]
    found = []
    if against:
        names = Counter(best["label"] for _, best in against)
        where = ", ".join(f"{name} at {count}" for name, count in names.most_common())
        found.append(_told("the best dense alternative's time", [_ratio(*pair) for pair in against], where))
    for rival, name in RIVALS.items():
        ratios = [_ratio(ours, row) for ours, rows in pairs for row in rows if row["method"] == rival and sound(row)]
        if ratios:
            found.append(_told(f"{name}'s time", ratios))
    return (
        f"{what}: the fastest block_shock takes {', '.join(found)}" if found else f"{what}: not timed with its rivals"
    )


def _fastest(rows: list[Info]) -> Info | None:
    """Of Block-Shock at one point; without those that train on stale weights, and without what is wrong."""
    ours = [row for row in rows if row["method"] == "block_shock" and sound(row)]
    return min(ours, key=lambda row: row["p50_ms"], default=None)


def _ratio(ours: Info, theirs: Info) -> float:
    return float(ours["p50_ms"] / theirs["p50_ms"])


def _told(whose: str, ratios: list[float], where: str = "") -> str:
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} points"
    return f"{statistics.median(ratios):.2f} of {whose} ({spread}{': ' if where else ''}{where})"


def _judged(infos: list[Info]) -> str:
    if not infos:
        return "verdicts: none in this run; `pytest tests/test_hypotheses.py -m bench` makes them"
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    rivals: dict[str, Counter[str]] = defaultdict(Counter)
    for info in infos:
        if not info.get("wrong"):
            counts[info["hypothesis"]][info["verdict"]] += 1
            rivals[info["hypothesis"]][info["rival"]] += 1
    told = [
        f"{name} {', '.join(f'{verdict} at {count}' for verdict, count in found.most_common())} "
        f"(against {', '.join(rival for rival, _ in rivals[name].most_common())})"
        for name, found in counts.items()
    ]
    if distrusted := sum(bool(info.get("wrong")) for info in infos):
        told.append(f"{distrusted} left out, whose output is wrong")
    if spans := sum(map(wide, infos)):
        told.append(f"{spans} with an interval wider than a factor of {WIDE:g}")
    return f"verdicts: {'; '.join(told)}"
